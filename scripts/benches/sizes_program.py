"""One function in images that differ in how much is in them which nobody reads.

All files differ, so each is a chunk of its own. Most of each is a hole: what a start could touch is names, attributes and
digests, of which there are as many as if it were full, and the machine that measures keeps its disk.
"""

import os

import modal

# How large the images are, beside what all have, in megabytes; the bench says which it wants.
MEGABYTES = [int(size) for size in os.environ.get("SHOAL_BENCH_MEGABYTES", "100").split(",")]
FILES_A_MEGABYTE = 10

app = modal.App("shoal-bench-sizes")


def fill(megabytes: int) -> None:
    for number in range(megabytes * FILES_A_MEGABYTE):
        folder = f"/unused/{number // 100}"
        os.makedirs(folder, exist_ok=True)
        with open(f"{folder}/{number}", "wb") as file:
            file.write(os.urandom(16))
            file.truncate(1_000_000 // FILES_A_MEGABYTE)


def same(x):
    return x


for size in MEGABYTES:
    image = modal.Image.debian_slim().run_function(fill, args=(size,))
    app.function(name=f"megabytes_{size}", image=image, scaledown_window=2)(same)
