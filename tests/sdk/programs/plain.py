"""The least that a program can be: one function, and an image that says nothing."""

import modal

app = modal.App("plain")


@app.function()
def increment(x: int) -> int:
    return x + 1
