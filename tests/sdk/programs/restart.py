"""Functions that are at work while the node is killed under them."""

import time

import modal

app = modal.App("restart")


@app.function(timeout=600)
def work(seconds: float, x: int) -> int:
    print(f"working on {x}", flush=True)
    time.sleep(seconds)
    return x * x


@app.local_entrypoint()
def main(seconds: float = 5.0):
    print("calling", flush=True)
    print(f"result {work.remote(seconds, 7)}")
