"""Functions that say how they were started, as far as a program can tell."""

import os
import sys
import time

import modal

app = modal.App("starts")
secret = modal.Secret.from_dict({"A_SECRET": "of this app"})
sensitive = modal.Secret.from_dict({"PYTHONHASHSEED": "0"})


def _look() -> dict:
    import __main__
    import random
    import ssl
    import tempfile
    import uuid

    with open("/proc/self/cmdline", "rb") as file:
        command = file.read().split(b"\0")[:-1]
    return {
        "argv": sys.argv,
        "orig_argv": list(sys.orig_argv),
        "path": sys.path,
        "main": [__main__.__name__, __main__.__spec__.name, sorted(name for name in vars(__main__) if "zygote" in name)],
        "modules": sorted(name for name in sys.modules if "zygote" in name),
        "command": [word.decode() for word in command],
        "cwd": os.getcwd(),
        "stdin": sys.stdin.read(),
        "environment": dict(os.environ),
        "pid": os.getpid(),
        "threads": sorted(os.listdir("/proc/self/task"), key=int)[0],
        "flags": str(sys.flags),
        "random": [random.random(), uuid.uuid4().hex, ssl.RAND_bytes(8).hex(), os.path.basename(tempfile.mktemp())],
    }


@app.function(secrets=[secret])
def look() -> dict:
    return _look()


@app.function(secrets=[sensitive])
def look_with_another_seed() -> dict:
    return {**_look(), "hash": hash("a")}


@app.function()
def wait(seconds: float) -> str:
    time.sleep(seconds)
    return os.environ["MODAL_TASK_ID"]


@app.function(max_containers=2)
def draw(drawn: modal.Dict) -> tuple[str, list]:
    """Draws, holds its container until another one has drawn too, and returns the container and what it drew."""
    import random
    import ssl
    import uuid

    task, mine = os.environ["MODAL_TASK_ID"], [random.random(), uuid.uuid4().hex, ssl.RAND_bytes(8).hex()]
    drawn[task] = True
    while drawn.len() < 2:
        time.sleep(0.1)
    return task, mine
