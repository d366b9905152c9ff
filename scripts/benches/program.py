"""The functions that scripts/bench calls. They do nothing, so that what is measured is the way to them."""

import os
import time

import modal

app = modal.App("shoal-bench")


# One container that is always there.
@app.function(min_containers=1, max_containers=1, scaledown_window=1200)
def warm(x):
    return x


# As many containers as rig.py says in MANY, always there.
@app.function(min_containers=2, max_containers=2, scaledown_window=1200)
def many(x):
    return x


# No container, soon after a call.
@app.function(scaledown_window=2)
def cold(x):
    return x


# One container that takes many inputs at once.
@app.function(max_containers=1, scaledown_window=20)
@modal.concurrent(max_inputs=100)
async def at_once(x):
    return x


# One container that takes many inputs in one call.
@app.function(max_containers=1, scaledown_window=20)
@modal.batched(max_batch_size=50, wait_ms=10)
def in_batches(xs):
    return xs


# A container for each input that runs: where, and from when on. So small that a machine has room for all.
@app.function(cpu=0.05, memory=64, scaledown_window=2)
def fan(seconds):
    began = time.time()
    time.sleep(seconds)
    return os.environ["MODAL_TASK_ID"], began


# One container, which is soon taken by an input that does not end: all others wait.
@app.function(max_containers=1, scaledown_window=2, timeout=3600)
def stuck(x):
    time.sleep(3600 if x else 0)


# As many containers as a bench says, which wait. So small that a machine has room for many.
@app.function(cpu=0.01, memory=64, scaledown_window=2)
def idle(x):
    return x


# Functions without a container, called all at once: as many as figures.py says in BURST. Their containers outlive the last
# one's start, and are so small that a machine has room for all.
def burst(x):
    return x


for number in range(20):
    app.function(name=f"burst_{number}", cpu=0.05, memory=64, scaledown_window=10)(burst)


@app.function(scaledown_window=2)
def chatter(lines: int, mark: str):
    print(f"first of {mark}")
    for i in range(lines):
        print(f"line {i} of a program that says much")
    print(f"last of {mark}", flush=True)
