"""Functions that keep containers without work."""

import os

import modal

app = modal.App("kept-warm")


@app.function(min_containers=2, max_containers=3, scaledown_window=2)
def warm() -> str:
    return os.environ["MODAL_TASK_ID"]
