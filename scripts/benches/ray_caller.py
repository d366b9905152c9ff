"""Takes the orders of caller.py for Ray on this machine: plain processes, no containers, no client protocol.

For information: Ray isolates nothing and keeps nothing, so it is no baseline for Shoal.
"""

import json
import os
import sys
import time

import ray

# As many workers as a map has containers; rig.py says the same.
MANY = 2


@ray.remote
def same(x):
    return x


def remote(times: int) -> dict:
    taken = []
    for i in range(times):
        began = time.perf_counter()
        ray.get(same.remote(i))
        taken.append((time.perf_counter() - began) * 1000)
    return {"ms": taken}


def map_all(inputs: int) -> dict:
    began = time.perf_counter()
    ray.get([same.remote(i) for i in range(inputs)])
    return {"seconds": time.perf_counter() - began}


def main() -> None:
    # What Ray prints belongs to the log, not among the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    ray.init(num_cpus=MANY, include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[1])
    for line in sys.stdin:
        order = json.loads(line)
        answer = remote(order["times"]) if order["do"] == "remote" else map_all(order["inputs"])
        print(json.dumps(answer), file=answers, flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
