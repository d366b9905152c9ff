"""A container to look into: it stays for as long as a call sleeps, and knows a secret."""

import os
import time

import modal

app = modal.App("shells")


@app.function(secrets=[modal.Secret.from_dict({"KNOWN": "to the function"})])
def stay(seconds: float) -> str:
    time.sleep(seconds)
    return os.environ["MODAL_TASK_ID"]


brief = modal.App("shells-brief")


@brief.function()
def stay_briefly(seconds: float) -> None:
    time.sleep(seconds)
