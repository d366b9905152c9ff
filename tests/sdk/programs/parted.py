"""Functions whose calls are at home at different nodes."""

import modal

app = modal.App("parted")

FUNCTIONS = 6


def make(number: int):
    @app.function(name=f"work{number}", serialized=True)
    def work(x: int) -> int:
        return 1000 * number + x

    return work


works = [make(number) for number in range(FUNCTIONS)]
