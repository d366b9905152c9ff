"""Functions with every setting of how many containers there may be, each telling which one it ran in."""

import asyncio
import os
import time

import modal

app = modal.App("scale")


def here() -> str:
    """Returns the id of this container's task."""
    return os.environ["MODAL_TASK_ID"]


def stay(seconds: float) -> tuple[str, float, float]:
    """Stays for a while and returns where, from when and until when."""
    begin = time.time()
    time.sleep(seconds)
    return here(), begin, time.time()


@app.function(scaledown_window=30)
def plain(seconds: float = 0.0):
    return stay(seconds)


@app.function(max_containers=2, scaledown_window=5)
def at_most_two(seconds: float):
    return stay(seconds)


@app.function(scaledown_window=3)
def short_lived(seconds: float = 0.0):
    return stay(seconds)


@app.function(buffer_containers=1, scaledown_window=4)
def with_a_spare(seconds: float):
    return stay(seconds)


@app.function(single_use_containers=True, scaledown_window=300)
def only_once(seconds: float = 0.0):
    return stay(seconds)


@app.function(scaledown_window=10)
@modal.concurrent(max_inputs=20)
def many_at_once(seconds: float):
    return stay(seconds)


@app.function(scaledown_window=10, max_containers=1)
@modal.concurrent(max_inputs=20, target_inputs=2)
async def stretches(seconds: float):
    begin = time.time()
    await asyncio.sleep(seconds)
    return here(), begin, time.time()


@app.function(scaledown_window=10, max_containers=1)
@modal.batched(max_batch_size=10, wait_ms=500)
def in_batches(xs: list[int]) -> list[tuple[int, int]]:
    """Returns each input with the size of the batch it came in."""
    return [(x, len(xs)) for x in xs]


@app.function(scaledown_window=10, max_containers=1)
def stops_itself(x: int) -> str:
    """Takes no further input after this one."""
    modal.experimental.stop_fetching_inputs()
    return here()


@app.function(cpu=1.0, scaledown_window=2)
def crowd(x: int) -> int:
    print(f"crowd {x}", flush=True)
    time.sleep(0.7)
    return x


# Another app, with a function of the same size.
other = modal.App("scale-other")


@other.function(cpu=1.0, scaledown_window=2)
def modest() -> str:
    return here()


@app.function(scaledown_window=30, max_containers=2)
def double(x: int) -> int:
    return 2 * x


@app.local_entrypoint()
def put_much(inputs: int):
    """Spawns a map and says what came out."""
    results = list(double.experimental_spawn_map(range(inputs)).iter())
    print(f"{len(results)} results, right: {results == [2 * x for x in range(inputs)]}")


@app.cls(scaledown_window=2)
class Leaver:
    @modal.method()
    def work(self):
        return here()

    @modal.exit()
    def leave(self):
        print("exit hook of a Leaver ran", flush=True)
