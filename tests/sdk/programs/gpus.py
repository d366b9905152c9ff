"""Functions that ask for GPUs in every way there is; what they hold is seen from outside."""

import os

import modal

app = modal.App("gpus")


@app.function(gpu=["H100:2", "A100"], cpu=0.1)
def best(barrier: modal.Queue) -> str:
    barrier.get()
    return os.environ["MODAL_TASK_ID"]


@app.function(gpu="any", cpu=0.1)
def some() -> str:
    return os.environ["MODAL_TASK_ID"]


@app.local_entrypoint()
def main():
    with modal.Queue.ephemeral() as barrier:
        calls = [best.spawn(barrier) for _ in range(3)]
        print("spawned", flush=True)
        while not os.path.exists(os.environ["GPUS_GO"]):
            pass
        barrier.put_many([0] * 3)
        print(len({call.get() for call in calls}), "containers;", some.remote())


never = modal.App("never")


@never.function(gpu=["H100:3", "T4"])
def lacking():
    pass
