"""Work that goes on for a while, by itself or for a client that waits."""

import time

import modal

app = modal.App("detached")


@app.function()
def work(seconds: float):
    print("work begins", flush=True)
    time.sleep(seconds)
    print("work ends", flush=True)
    return "worked"


@app.local_entrypoint()
def waits(seconds: float = 12):
    work.remote(seconds)


@app.local_entrypoint()
def leaves(seconds: float = 8):
    call = work.spawn(seconds)
    print(f"call {call.object_id}")


@app.local_entrypoint()
def quick():
    print(f"answer {work.remote(0)}")
