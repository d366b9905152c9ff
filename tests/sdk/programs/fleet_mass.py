"""A client that maps and spawns many inputs of fleet.py at once: python fleet_mass.py APP INPUTS CALLS.

Prints "in the midst" once a tenth of the map's results are there and all calls are accepted, then facts as fleet_load.py does: each call
that was accepted and what came of it, and at last whether the map gave each result, once, in order.
"""

import asyncio
import sys
import time

import modal
from fleet import FUNCTIONS
from fleet_load import tell

# How long an input takes, in seconds, so that much of the map is under way when something happens.
SECONDS = 0.05
# How many calls are accepted, or waited for, at a time; how long one may take.
AT_ONCE, PATIENCE = 16, 180


async def main(name: str, inputs: int, calls: int) -> None:
    functions = [modal.Function.from_name(name, f"work{number}") for number in range(FUNCTIONS)]
    room, accepted, midst = asyncio.Semaphore(AT_ONCE), 0, asyncio.Event()

    async def spawn(x: int) -> None:
        nonlocal accepted
        began = time.time()
        async with room:
            call = await functions[x % FUNCTIONS].spawn.aio(x, SECONDS)
        tell("spawned", began, call=call.object_id, number=x % FUNCTIONS, x=x)
        accepted += 1
        await midst.wait()
        async with room:
            tell("result", began, call=call.object_id, x=x, outcome=await call.get.aio(timeout=PATIENCE))

    async def mapped() -> list:
        results = []
        async for result in functions[0].map.aio(range(inputs), kwargs={"seconds": SECONDS}):
            results.append(result)
            if not midst.is_set() and len(results) >= inputs // 10 and accepted == calls:
                print("in the midst", flush=True)
                midst.set()
        return results

    began = time.time()
    results, *_ = await asyncio.gather(mapped(), *[spawn(x) for x in range(calls)])
    marks = {mark for _, _, mark in results}
    whole = [result[:2] for result in map(list, results)] == [[0, x] for x in range(inputs)]
    tell("mapped", began, count=len(results), whole=whole, marks=len(marks))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
