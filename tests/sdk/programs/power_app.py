"""What runs while the power goes: inputs and results small and large, and a function whose image a deploy builds."""

import hashlib
import os
import random
import uuid

import modal

VERSION = os.environ.get("POWER_VERSION", "0")
# A build step of its own for each version, and a variable that tells it.
built = modal.Image.debian_slim().env({"POWER_VERSION": VERSION}).run_commands(f"echo built for {VERSION} > /built")

app = modal.App("power")


@app.function(max_containers=1, timeout=600)
def work(x: int, payload: bytes = b"", back: int = 0) -> tuple[int, str, bytes, str]:
    """Returns the square, what came as a digest, as many bytes as asked for, and a token that each attempt draws anew."""
    return x * x, hashlib.sha256(payload).hexdigest(), random.Random(x).randbytes(back), uuid.uuid4().hex


@app.function(image=built)
def version() -> tuple[str, str]:
    with open("/built") as file:
        return VERSION, file.read().strip()
