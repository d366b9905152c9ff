"""Containers that wait and have nothing to do, as small as they can be."""

import os

import modal

app = modal.App("idle")


@app.function(min_containers=10, cpu=0.02, memory=64, scaledown_window=2)
def idle() -> str:
    return os.environ["MODAL_TASK_ID"]
