"""Functions whose errors, arguments and results give pickle trouble, and functions that are tried again."""

import os
import sys
import threading
import time
import types

import modal

app = modal.App("faults")


class Sticky(Exception):
    """Can't be pickled: it holds a lock."""

    def __init__(self, text: str):
        super().__init__(text)
        self.lock = threading.Lock()


class Picky(Exception):
    """Can be pickled, but not be made again from its arguments."""

    def __init__(self, name: str, *, reason: str):
        super().__init__(f"{name}: {reason}")


@app.function()
def raise_sticky():
    raise Sticky("stuck to its container")


@app.function()
def raise_picky():
    raise Picky("cherry", reason="too small")


@app.function()
def raise_from_nowhere():
    """Raises an exception of a module that only this container has."""
    module = types.ModuleType("only_in_the_container")
    exec("class Foreign(Exception):\n    pass", module.__dict__)
    sys.modules[module.__name__] = module
    raise module.Foreign("from a module that nobody else has")


@app.function()
def raise_chained():
    try:
        {}["missing"]
    except KeyError as error:
        raise ValueError("the outer one") from error


@app.function()
def raise_huge(size: int):
    raise ValueError("x" * size)


@app.function()
def leave(code: int):
    """Raises SystemExit, as sys.exit() does."""
    sys.exit(code)


@app.function()
def return_lock():
    return threading.Lock()


@app.function()
def return_foreign():
    """Returns an object of a module that only this container has."""
    module = types.ModuleType("only_in_the_container")
    exec("class Thing:\n    pass", module.__dict__)
    sys.modules[module.__name__] = module
    return module.Thing()


@app.function()
def pid_of(_value=None) -> int:
    return os.getpid()


attempts: dict[str, list[float]] = {}


def attempt(key: str) -> int:
    """Counts the tries of a key in this container; they are kept with the moment of each."""
    attempts.setdefault(key, []).append(time.time())
    return len(attempts[key])


@app.function(retries=2, max_containers=1)
def fail_times(key: str, failures: int) -> int:
    """Fails this often, then returns which try it was."""
    number = attempt(key)
    if number <= failures:
        raise ValueError(f"try {number} of {key}")
    return number


@app.function(retries=modal.Retries(max_retries=2, initial_delay=1.0, backoff_coefficient=2.0), max_containers=1)
def fail_slowly(key: str) -> list[float]:
    """Succeeds at the third try and returns when each began."""
    if attempt(key) <= 2:
        raise ValueError(key)
    return attempts[key]


@app.function(retries=1, timeout=2, startup_timeout=60)
def too_slow(seconds: float) -> None:
    print("a try of too_slow", flush=True)
    time.sleep(seconds)


@app.function(retries=1)
def die_always() -> None:
    print("a try of die_always", flush=True)
    os._exit(7)
