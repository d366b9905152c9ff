"""A program whose parts run on any node of a cluster."""

import os
import time

import modal

MARK = os.environ.get("MARK", "none")

app = modal.App("spread")
secrets = [] if MARK == "none" else [modal.Secret.from_name(MARK)]
marked = modal.Image.debian_slim().run_commands(f"echo {MARK} > /mark", secrets=secrets)


@app.function()
def double(x: int) -> int:
    print(f"doubling {x}")
    return 2 * x


@app.function()
def length(data: bytes) -> bytes:
    """Returns as much as it gets, and its length before it."""
    return len(data).to_bytes(8, "little") + data


@app.function()
def count(n: int):
    for number in range(n):
        yield number


@app.function()
def fail():
    raise KeyError("what was not found")


@app.function(timeout=300)
def slow(seconds: float) -> float:
    print(f"slow begins, {seconds} s", flush=True)
    time.sleep(seconds)
    return seconds


@app.function(image=marked)
def mark() -> str:
    with open("/mark") as file:
        return file.read().strip()


@app.local_entrypoint()
def one(x: int = 21):
    print(f"double {double.remote(x)}")


@app.local_entrypoint()
def built():
    print(f"mark {mark.remote()}")


@app.local_entrypoint()
def long(seconds: float = 20.0):
    print(f"slow ended after {slow.remote(seconds)}")
