"""Functions that take many inputs at a time, together or as batches, each telling which container it ran in."""

import asyncio
import os
import threading
import time

import modal

app = modal.App("concurrency")


def here() -> str:
    """Returns the id of this container's task."""
    return os.environ["MODAL_TASK_ID"]


@app.function(scaledown_window=10, max_containers=1)
@modal.concurrent(max_inputs=10)
async def together(seconds: float) -> tuple[str, str]:
    await asyncio.sleep(seconds)
    return here(), modal.current_input_id()


@app.function(scaledown_window=10, max_containers=1, timeout=8)
@modal.concurrent(max_inputs=10)
async def in_time(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return here()


@app.function(scaledown_window=10, max_containers=1, timeout=8, retries=modal.Retries(max_retries=1, initial_delay=0.0))
@modal.concurrent(max_inputs=10)
async def in_time_or_again(mark: str, seconds: float) -> str:
    # Only the first try takes long.
    again = mark in TRIED
    TRIED.add(mark)
    await asyncio.sleep(0.0 if again else seconds)
    return here() + (" again" if again else "")


TRIED: set[str] = set()


@app.function(scaledown_window=10, max_containers=1)
@modal.concurrent(max_inputs=10)
def in_threads(seconds: float) -> tuple[str, int, str]:
    time.sleep(seconds)
    return here(), threading.get_ident(), modal.current_input_id()


@app.function(scaledown_window=10)
@modal.concurrent(max_inputs=10)
async def generate(n: int):
    for i in range(n):
        await asyncio.sleep(0.05)
        yield i


@app.function(scaledown_window=10, max_containers=1)
@modal.batched(max_batch_size=4, wait_ms=8000)
def patient(xs: list[int]) -> list[tuple[int, int]]:
    return [(x, len(xs)) for x in xs]


@app.function(scaledown_window=10, max_containers=1)
@modal.batched(max_batch_size=4, wait_ms=1500)
async def slow_batch(seconds: list[float]) -> list[tuple[str, int]]:
    await asyncio.sleep(max(seconds))
    return [(here(), len(seconds))] * len(seconds)


@app.function(scaledown_window=10, max_containers=1, retries=1)
@modal.batched(max_batch_size=4, wait_ms=200)
def wrong_batch(xs: list[int]) -> list[int]:
    if -1 in xs:
        raise ValueError(f"a batch with {sorted(xs)}")
    return [0] if -2 in xs else xs


@app.cls(scaledown_window=10)
class Batcher:
    @modal.batched(max_batch_size=3, wait_ms=1000)
    def run(self, xs: list[int], ys: list[int]) -> list[tuple[int, int]]:
        return [(x + y, len(xs)) for x, y in zip(xs, ys, strict=True)]


@app.function(single_use_containers=True, scaledown_window=60)
def once() -> str:
    return here()
