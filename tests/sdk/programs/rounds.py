"""What goes on while the node is killed again and again."""

import time
import uuid

import modal

app = modal.App("rounds")


@app.function(timeout=600, max_containers=2)
def work(x: int, seconds: float = 0.0) -> tuple[int, str]:
    """Returns the square, and a token that each attempt draws anew."""
    time.sleep(seconds)
    return x * x, uuid.uuid4().hex


@app.function(timeout=600)
def count(to: int):
    for number in range(to):
        time.sleep(0.05)
        yield number
