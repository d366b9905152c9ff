"""A client that asks fleet.py for much until SIGTERM comes, and writes down what it was told: python fleet_load.py APP.

Each line of its output is a fact, with the time of its end (`at`, seconds since 1970) and what it took:

spawned   a call of function `number` for `x` was accepted
result    that call has this outcome, and no other
answered  `remote` gave this outcome
mapped    a `map` gave what it should
error     something was refused or failed that should not have
"""

import asyncio
import json
import signal
import sys
import time
import traceback

import modal
from fleet import FUNCTIONS

SPAWN_EVERY, ASK_EVERY, MAP_EVERY = 0.3, 0.2, 2.0
MAP_INPUTS = 20
# How many results are waited for at a time.
READERS = 8
# How long one result may be waited for, in seconds: longer than any fault.
PATIENCE = 120


def tell(kind: str, began: float, **fact) -> None:
    sys.stdout.write(json.dumps({"kind": kind, "at": time.time(), "took": time.time() - began, **fact}) + "\n")
    sys.stdout.flush()


async def attempt(what: str, once) -> None:
    began = time.time()
    try:
        await once(began)
    except Exception as error:
        tell("error", began, what=what, error=f"{type(error).__name__}: {error}", trace=traceback.format_exc()[-2000:])


async def main(name: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    functions = [modal.Function.from_name(name, f"work{number}") for number in range(FUNCTIONS)]
    accepted: asyncio.Queue = asyncio.Queue()
    count = 0

    def fresh() -> int:
        nonlocal count
        count += 1
        return count

    async def repeat(what: str, every: float, once) -> None:
        while not stop.is_set():
            await attempt(what, once)
            try:
                await asyncio.wait_for(stop.wait(), every)
            except asyncio.TimeoutError:
                pass

    async def spawn(began: float) -> None:
        x = fresh()
        call = await functions[x % FUNCTIONS].spawn.aio(x)
        tell("spawned", began, call=call.object_id, number=x % FUNCTIONS, x=x)
        await accepted.put((call, x))

    def ask(number: int):
        async def once(began: float) -> None:
            x = fresh()
            tell("answered", began, number=number, x=x, outcome=await functions[number].remote.aio(x))

        return once

    async def mapped(began: float) -> None:
        number = fresh() % FUNCTIONS
        inputs = [fresh() for _ in range(MAP_INPUTS)]
        results = [result async for result in functions[number].map.aio(inputs)]
        if [result[:2] for result in map(list, results)] != [[number, x] for x in inputs]:
            raise AssertionError(f"map of {inputs} over work{number} gave {results}")
        tell("mapped", began, number=number, count=len(results))

    async def read() -> None:
        while (item := await accepted.get()) is not None:
            call, x = item

            async def once(began: float) -> None:
                tell("result", began, call=call.object_id, x=x, outcome=await call.get.aio(timeout=PATIENCE))

            await attempt(f"result of {call.object_id}", once)

    readers = [asyncio.create_task(read()) for _ in range(READERS)]
    await asyncio.gather(
        repeat("spawn", SPAWN_EVERY, spawn),
        repeat("map", MAP_EVERY, mapped),
        *[repeat(f"remote of work{number}", ASK_EVERY, ask(number)) for number in range(FUNCTIONS)],
    )
    for _ in readers:
        await accepted.put(None)
    await asyncio.gather(*readers)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
