"""One function in an image that nobody has seen, full of bytes that nobody reads, on a node of which it is said; by what is in the environment."""

import os

import modal

MARK = os.environ.get("SHOAL_BENCH_MARK", "")
MEGABYTES = int(os.environ.get("SHOAL_BENCH_MEGABYTES", "1000"))

app = modal.App("shoal-bench-big")


def fill(megabytes: int, mark: str) -> None:
    os.makedirs("/unused")
    for number in range(megabytes):
        with open(f"/unused/{number}", "wb") as file:
            file.write(os.urandom(1_000_000))


def function():
    """Returns what the functions do; made within a function, it travels by its value."""

    def same(x):
        return x

    return same


image = modal.Image.debian_slim().run_function(fill, args=(MEGABYTES, MARK))
for number in range(1, 4):
    app.function(name=f"at_{number}", serialized=True, image=image, region=f"node-{number}", scaledown_window=2)(function())
