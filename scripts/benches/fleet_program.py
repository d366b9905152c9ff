"""The functions that benches of a cluster call. They do nothing; where they run is said by the labels that fleet.py gives the nodes."""

import os

import modal

app = modal.App("shoal-bench-fleet")

# How many cores a node has; the bench says it.
CORES = float(os.environ.get("SHOAL_BENCH_CORES", "1"))
# Whether some functions keep containers.
KEEPS = os.environ.get("SHOAL_BENCH_KEEPS") == "yes"


def functions():
    """Returns what the functions do. What is made within a function travels by its value, so that no image needs this file."""

    def same(x):
        return x

    def hold(seconds: float) -> None:
        import time

        time.sleep(seconds)

    return same, hold


same, hold = functions()

# Takes a node for itself, as often as there are nodes; then nothing of the others finds room.
app.function(name="hold", serialized=True, cpu=CORES, timeout=3600, scaledown_window=2)(hold)
for number in range(8):
    app.function(name=f"queued_{number}", serialized=True, cpu=CORES, scaledown_window=2)(same)

# A container on a node of which it is known, while it is asked for.
for number in range(1, 4):
    for copy in range(4):
        app.function(name=f"at_{number}_{copy}", serialized=True, region=f"node-{number}", scaledown_window=300)(same)

# Containers on several nodes, and one that is somewhere.
app.function(name="steady", serialized=True, min_containers=3 if KEEPS else None, scaledown_window=300)(same)
app.function(name="sole", serialized=True, min_containers=1 if KEEPS else None, scaledown_window=300)(same)
