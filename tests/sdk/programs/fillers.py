"""Functions that write much to the disk of their container."""

import os
import time

import modal

app = modal.App("fillers")


@app.function()
def fill(megabytes: int, seconds: float = 0.0) -> int:
    """Writes a file and waits; returns how large it is then."""
    with open("/filled", "wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(1 << 20))
    time.sleep(seconds)
    return os.path.getsize("/filled") >> 20


@app.local_entrypoint()
def main(small: int, large: int, seconds: float):
    beside = fill.spawn(small, seconds)
    try:
        print(f"large {fill.remote(large, seconds)}")
    except Exception as error:
        print(f"large failed: {error}")
    print(f"small {beside.get()}")
    print(f"again {fill.remote(small)}")
