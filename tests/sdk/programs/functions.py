"""Functions of every plain kind, for tests that call them from outside and from each other."""

import asyncio
import time

import modal

app = modal.App("functions")


class Overripe(ValueError):
    """An exception type of the program's own, with an argument of its own."""

    def __init__(self, fruit: str, days: int):
        super().__init__(fruit, days)
        self.fruit, self.days = fruit, days


@app.function()
def square(x: int) -> int:
    return x**2


@app.function()
async def square_async(x: int) -> int:
    await asyncio.sleep(0)
    return x**2


@app.function()
def echo(value):
    return value


@app.function()
def slow_last_first(x: int) -> int:
    # Earlier inputs take longer, so that results come in another order than they were asked for.
    time.sleep(0.2 if x % 10 == 0 else 0.0)
    return x


@app.function(timeout=600)
def sleep(seconds: float, value=None):
    print(f"sleeping {seconds} for input {modal.current_input_id()}", flush=True)
    time.sleep(seconds)
    return value


@app.function()
def count(n: int):
    for i in range(n):
        yield i


@app.function()
async def count_async(n: int):
    for i in range(n):
        await asyncio.sleep(0)
        yield i


@app.function()
def count_then_fail(n: int):
    yield from range(n)
    raise Overripe("pear", n)


@app.function()
def fail(fruit: str, days: int):
    inner(fruit, days)


def inner(fruit: str, days: int):
    raise Overripe(fruit, days)


@app.function()
def fail_on_odd(x: int) -> int:
    if x % 2:
        raise Overripe("plum", x)
    return x


@app.function()
def ripen(days: int) -> int:
    # Nothing else calls it: what is told of it is what its test did.
    if days > 7:
        raise Overripe("fig", days)
    return days


@app.function()
def sum_of_squares(n: int) -> int:
    # A function that calls another, by a call and by a map.
    return square.remote(n) + sum(square.map(range(n)))


@app.function()
def make_bytes(size: int) -> bytes:
    return bytes(size)


@app.function()
def measure_bytes(data: bytes) -> tuple[int, int]:
    import zlib

    return len(data), zlib.crc32(data)


@app.function()
def add(x: int, y: int = 0, *, times: int = 1) -> int:
    return (x + y) * times


@app.function()
def whereabouts(x=None) -> dict:
    """Returns what the client's own words for "here" say in a container."""
    return {
        "local": modal.is_local(),
        "input": modal.current_input_id(),
        "call": modal.current_function_call_id(),
        "local call": square.local(7),
        "spawned": square.spawn(6).get(),
        "generated": list(count.remote_gen(3)),
        "x": x,
    }


@app.function()
async def whereabouts_async() -> tuple[str | None, str | None]:
    await asyncio.sleep(0.2)
    return modal.current_input_id(), modal.current_function_call_id()


@app.function()
async def count_then_fail_async(n: int):
    for i in range(n):
        yield i
    raise Overripe("apricot", n)


@app.function(timeout=120)
def count_for_ever(size: int):
    """Never ends by itself, and each item has this many bytes."""
    i = 0
    while True:
        yield i, bytes(size)
        i += 1


@app.function()
def large_items(n: int, size: int):
    for i in range(n):
        yield i, bytes([i % 251]) * size


@app.local_entrypoint()
def main():
    print(f"result {square.remote(12)}")
