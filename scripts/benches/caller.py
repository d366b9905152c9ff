"""A client process: the unmodified client, towards whatever server its environment names.

Orders come on stdin as JSON, one a line; each is answered on stdout in the same way. The clock is
this process's own, around nothing but the call.

    {"do": "remote", "function": "warm", "times": 50}              {"ms": [...]}
    {"do": "map", "function": "many", "inputs": 1000}              {"seconds": s}
    {"do": "spawn", "function": "warm", "times": 200}              {"ms": [...]}
    {"do": "spawn", "function": "warm", "times": 200, "at_once": 16}   {"seconds": s}
    {"do": "keep", "function": "idle", "containers": 50}           {}
    {"do": "look", "function": "warm"}                             {}
    {"do": "together", "functions": ["burst_0", "burst_1"]}        {"ms": [...]}, one of all
    {"do": "build", "packages": ["numpy"]}                         {"seconds": s}
    {"do": "submit", "function": "warm", "times": 500, "at_once": 64}   {"seconds": s}, until all are accepted
    {"do": "drain"}                                                {}, when all that was submitted has its result
    {"do": "fan", "function": "fan", "inputs": 8, "seconds": 15}   {"ms": ms, "containers": n}, until the last input runs
    {"do": "queue", "function": "stuck", "inputs": 1000, "shape": "map"}    {}, when all wait; or "calls", one each
    {"do": "cancel"}                                               {}, all that was queued
    {"do": "queue_pairs", "pairs": 1000, "at_once": 16, "reads": false}     {"seconds": s}, put and taken out again
    {"do": "dict_pairs", "pairs": 1000, "at_once": 16, "reads": false}      {"seconds": s}, put and read, or read alone
"""

import asyncio
import functools
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterable

import modal

APP = sys.argv[1]


def remote(function: modal.Function, times: int) -> dict:
    taken = []
    for i in range(times):
        began = time.perf_counter()
        function.remote(i)
        taken.append((time.perf_counter() - began) * 1000)
    return {"ms": taken}


def map_all(function: modal.Function, inputs: int) -> dict:
    began = time.perf_counter()
    outputs = sum(1 for _ in function.map(range(inputs)))
    seconds = time.perf_counter() - began
    assert outputs == inputs, f"{outputs} outputs of {inputs} inputs"
    return {"seconds": seconds}


def spawn(function: modal.Function, times: int, at_once: int | None, arguments: list) -> dict:
    if at_once is not None:
        return asyncio.run(spawn_together(function, times, at_once, arguments))
    taken, calls = [], []
    for _ in range(times):
        began = time.perf_counter()
        calls.append(function.spawn(*arguments))
        taken.append((time.perf_counter() - began) * 1000)
    for call in calls:
        call.get()
    return {"ms": taken}


async def spawn_together(function: modal.Function, times: int, at_once: int, arguments: list) -> dict:
    left, calls = iter(range(times)), []

    async def some() -> None:
        for _ in left:
            calls.append(await function.spawn.aio(*arguments))

    began = time.perf_counter()
    await asyncio.gather(*(some() for _ in range(at_once)))
    seconds = time.perf_counter() - began
    for call in calls:
        await call.get.aio()
    return {"seconds": seconds}


def keep(function: modal.Function, containers: int) -> dict:
    # Those that are not kept go at once.
    function.autoscaler.update(min_containers=containers, scaledown_window=1200 if containers else 2)
    return {}


def look(function: modal.Function) -> dict:
    # Whatever asks the server: the next call finds a connection that works.
    function.get_current_stats()
    return {}


def together(functions: list[modal.Function]) -> dict:
    async def all_of_them() -> None:
        await asyncio.gather(*(function.remote.aio(1) for function in functions))

    began = time.perf_counter()
    asyncio.run(all_of_them())
    return {"ms": [(time.perf_counter() - began) * 1000]}


def some_at_once(at_once: int, items: Iterable, do: Callable[..., Awaitable]) -> float:
    """Does something with each item, some of them at a time; returns the seconds that it took."""

    async def all_of_them() -> None:
        left = iter(items)

        async def some() -> None:
            for item in left:
                await do(item)

        await asyncio.gather(*(some() for _ in range(at_once)))

    began = time.perf_counter()
    asyncio.run(all_of_them())
    return time.perf_counter() - began


SUBMITTED: list[modal.FunctionCall] = []
QUEUED: list[modal.FunctionCall] = []


def submit(function: modal.Function, times: int, at_once: int) -> dict:
    async def one(x: int) -> None:
        SUBMITTED.append(await function.spawn.aio(x))

    return {"seconds": some_at_once(at_once, range(times), one)}


def drain() -> dict:
    some_at_once(16, SUBMITTED, lambda call: call.get.aio())
    SUBMITTED.clear()
    return {}


def fan(function: modal.Function, inputs: int, seconds: float) -> dict:
    async def all_of_them() -> list[tuple[str, float]]:
        return await asyncio.gather(*(function.remote.aio(seconds) for _ in range(inputs)))

    began = time.time()
    ran = asyncio.run(all_of_them())
    return {"ms": (max(at for _, at in ran) - began) * 1000, "containers": len({task for task, _ in ran})}


def queue(function: modal.Function, inputs: int, shape: str) -> dict:
    if shape == "map":
        QUEUED.append(function.experimental_spawn_map(range(1, inputs + 1)))
        return {}

    async def one(x: int) -> None:
        QUEUED.append(await function.spawn.aio(x))

    some_at_once(64, range(1, inputs + 1), one)
    return {}


def cancel() -> dict:
    some_at_once(16, reversed(QUEUED), lambda call: call.cancel.aio())
    QUEUED.clear()
    return {}


@functools.cache
def objects() -> tuple[modal.Queue, modal.Dict]:
    queue, entries = (kind.from_name(f"{APP}-pairs", create_if_missing=True).hydrate() for kind in (modal.Queue, modal.Dict))
    queue.clear(all=True)
    return queue, entries


def queue_pairs(pairs: int, at_once: int) -> dict:
    queue, _ = objects()

    async def pair(number: int) -> None:
        await queue.put.aio(number)
        await queue.get.aio()

    return {"seconds": some_at_once(at_once, range(pairs), pair)}


def dict_pairs(pairs: int, at_once: int, reads: bool) -> dict:
    _, entries = objects()

    async def pair(number: int) -> None:
        if not reads:
            await entries.put.aio(f"key-{number}", number)
        assert await entries.get.aio(f"key-{number}") == number

    return {"seconds": some_at_once(at_once, range(pairs), pair)}


def build(packages: list[str]) -> dict:
    app = modal.App.lookup(APP)
    image = modal.Image.debian_slim().pip_install(*packages, force_build=True)
    began = time.perf_counter()
    image.build(app)
    return {"seconds": time.perf_counter() - began}


FUNCTIONS: dict[str, modal.Function] = {}


def function_named(name: str) -> modal.Function:
    if name not in FUNCTIONS:
        FUNCTIONS[name] = modal.Function.from_name(APP, name).hydrate()
    return FUNCTIONS[name]


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        function = function_named(order["function"]) if "function" in order else None
        match order["do"]:
            case "remote":
                answer = remote(function, order["times"])
            case "map":
                answer = map_all(function, order["inputs"])
            case "spawn":
                answer = spawn(function, order["times"], order.get("at_once"), order.get("arguments", [1]))
            case "keep":
                answer = keep(function, order["containers"])
            case "look":
                answer = look(function)
            case "together":
                answer = together([function_named(name) for name in order["functions"]])
            case "build":
                answer = build(order["packages"])
            case "submit":
                answer = submit(function, order["times"], order["at_once"])
            case "drain":
                answer = drain()
            case "fan":
                answer = fan(function, order["inputs"], order["seconds"])
            case "queue":
                answer = queue(function, order["inputs"], order["shape"])
            case "cancel":
                answer = cancel()
            case "queue_pairs":
                answer = queue_pairs(order["pairs"], order["at_once"])
            case "dict_pairs":
                answer = dict_pairs(order["pairs"], order["at_once"], order["reads"])
            case other:
                raise ValueError(f"{other!r} is not an order")
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
