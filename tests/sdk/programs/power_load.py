"""A client that asks for much and writes down what it was told, and when: python power_load.py APP SECONDS NAME.

Each line of its output is a fact that must hold from `at` on (µs since 1970), also after a power cut:

spawned   a call was accepted, for the square of `x` with `size` random bytes beside
result    the call has this outcome, and no other
secret    a secret of this name has this value
"""

import hashlib
import json
import queue
import random
import sys
import threading
import time

import modal

# More than a message carries, so both ways it goes by the store of chunks.
LARGE_BYTES = 2_200_000
SMALL_EVERY, LARGE_EVERY, SECRET_EVERY = 0.05, 1.5, 1.0
# How many results are waited for at a time.
READERS = 3


def tell(**fact) -> None:
    # One write, so that lines of threads do not mix.
    sys.stdout.write(json.dumps({"at": time.time_ns() // 1000, **fact}) + "\n")
    sys.stdout.flush()


def digest(outcome: tuple) -> list:
    """Returns an outcome in a form that JSON takes: the square, two digests, the token."""
    square, payload, back, token = outcome
    return [square, payload, hashlib.sha256(back).hexdigest(), token]


def repeat(until: float, every: float, once) -> None:
    turn = 0
    while time.time() < until:
        once(turn)
        turn += 1
        time.sleep(every)


def main(app: str, seconds: float, name: str) -> None:
    work = modal.Function.from_name(app, "work")
    accepted: queue.Queue = queue.Queue()
    until = time.time() + seconds
    errors: list[Exception] = []

    def spawn(x: int, size: int) -> None:
        payload = random.Random(-x).randbytes(size)
        call = work.spawn(x, payload, size)
        tell(kind="spawned", call=call.object_id, x=x, size=size)
        accepted.put(call)

    def secret(turn: int) -> None:
        modal.Secret.objects.create(f"{name}-{turn}", {f"POWER_{turn}": f"value {turn}"})
        tell(kind="secret", name=f"{name}-{turn}", variable=f"POWER_{turn}", value=f"value {turn}")

    def read() -> None:
        while (call := accepted.get()) is not None:
            tell(kind="result", call=call.object_id, outcome=digest(call.get(timeout=120)))

    def thread(what, *arguments) -> threading.Thread:
        def run() -> None:
            try:
                what(*arguments)
            except Exception as error:
                errors.append(error)

        one = threading.Thread(target=run)
        one.start()
        return one

    askers = [
        thread(repeat, until, SMALL_EVERY, lambda turn: spawn(turn, 0)),
        thread(repeat, until, LARGE_EVERY, lambda turn: spawn(1_000_000 + turn, LARGE_BYTES)),
        thread(repeat, until, SECRET_EVERY, secret),
    ]
    readers = [thread(read) for _ in range(READERS)]
    for one in askers:
        one.join()
    for _ in readers:
        accepted.put(None)
    for one in readers:
        one.join()
    if errors:
        raise errors[0]


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), sys.argv[3])
