"""Holds facts of fleet_load.py against the cluster: python fleet_check.py FACTS-FILE.

Prints a line of JSON for each that does not hold, then how many calls were looked at.
"""

import asyncio
import json
import sys

import modal
from fleet import FUNCTIONS

# How long a call that was accepted may take to its result once all nodes are there again, in seconds.
PATIENCE = 60
LOOKED_AT_ONCE = 16


async def main(path: str) -> None:
    spawned, told = {}, {}
    with open(path) as file:
        for fact in map(json.loads, file):
            if fact["kind"] == "spawned":
                spawned[fact["call"]] = fact["x"]
            elif fact["kind"] == "result":
                told[fact["call"]] = fact["outcome"]
    room = asyncio.Semaphore(LOOKED_AT_ONCE)

    def problem(call: str, what: str) -> None:
        print(json.dumps({"call": call, "x": spawned[call], "problem": what}), flush=True)

    async def check(call: str, x: int) -> None:
        async with room:
            try:
                outcome = list(await modal.FunctionCall.from_id(call).get.aio(timeout=PATIENCE))
            except Exception as error:
                return problem(call, f"no result: {type(error).__name__}: {error}")
            if outcome[:2] != [x % FUNCTIONS, x]:
                problem(call, f"the result is {outcome}")
            if told.get(call, outcome) != outcome:
                problem(call, f"the result was {told[call]}, and is {outcome} now")

    await asyncio.gather(*[check(call, x) for call, x in spawned.items()])
    print(f"looked at {len(spawned)} calls")


asyncio.run(main(sys.argv[1]))
