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
"""

import asyncio
import json
import sys
import time

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
            case other:
                raise ValueError(f"{other!r} is not an order")
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
