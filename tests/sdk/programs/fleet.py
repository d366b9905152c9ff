"""Functions whose calls are at home at different nodes, and whose every attempt has a mark of its own."""

import os

import modal

app = modal.App("fleet")

FUNCTIONS = 3
# How many containers a function may have; as many as it needs where nothing is said.
MOST = int(os.environ.get("FLEET_CONTAINERS", "0")) or None


def make(number: int):
    @app.function(name=f"work{number}", serialized=True, timeout=600, min_containers=2, max_containers=MOST)
    @modal.concurrent(max_inputs=20)
    def work(x: int, seconds: float = 0.0) -> tuple[int, int, str]:
        """Returns the function's number, the input, and what this attempt alone has drawn."""
        import time
        import uuid

        time.sleep(seconds)
        return number, x, uuid.uuid4().hex

    return work


works = [make(number) for number in range(FUNCTIONS)]
