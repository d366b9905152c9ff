"""Functions that name a routing region, which clients call by attempts."""

import modal

app = modal.App("routed")
tries = {"eventually": 0}


@app.function(routing_region="here", max_containers=2, scaledown_window=10)
@modal.concurrent(max_inputs=50)
def double(x: int) -> int:
    if x < 0:
        raise ValueError(f"{x} is negative")
    return 2 * x


@app.function(routing_region="here", max_containers=1, scaledown_window=10, retries=modal.Retries(max_retries=3, initial_delay=0.1))
def eventually(at: int) -> int:
    """Succeeds at its third try."""
    tries["eventually"] += 1
    if tries["eventually"] < 3:
        raise ValueError(f"try {tries['eventually']}")
    return at


@app.function(routing_region="here", max_containers=1, scaledown_window=10)
def counts(n: int):
    yield from range(n)


@app.function(max_containers=1, scaledown_window=10)
def through(x: int) -> int:
    """Calls one of the others from its container."""
    return double.remote(x) + sum(double.map(range(5)))


@app.cls(routing_region="here", max_containers=1, scaledown_window=10)
class Adder:
    by: int = modal.parameter(default=1)

    @modal.method()
    def add(self, x: int) -> int:
        return x + self.by
