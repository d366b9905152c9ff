"""What clients of other languages call: arguments and results as CBOR, a class with parameters, and each way to fail."""

import os
import time

import modal

app = modal.App("foreign")


@app.function(max_containers=1, scaledown_window=20)
@modal.concurrent(max_inputs=20)
def describe(*args, **kwargs):
    """Says what became of the arguments, and hands them back."""
    kinds = [type(value).__name__ for value in [*args, *kwargs.values()]]
    return {"kinds": kinds, "args": list(args), "kwargs": kwargs}


@app.function(max_containers=1, scaledown_window=20)
@modal.concurrent(max_inputs=20)
def sized(data: bytes, answer: int) -> bytes:
    """Takes bytes of any length and answers with as many as are asked for, each the length of what came, modulo 256."""
    return bytes([len(data) % 256]) * answer


@app.function(max_containers=1, scaledown_window=20)
@modal.concurrent(max_inputs=20)
def fails(how: str):
    if how == "object":
        return object()
    if how == "exit":
        os._exit(3)
    print(f"failing by {how}", flush=True)
    raise ValueError(how)


@app.function(max_containers=1, scaledown_window=20, timeout=1)
def overruns():
    time.sleep(60)


@app.function(max_containers=1, scaledown_window=20)
def waits(seconds: float) -> str:
    time.sleep(seconds)
    return "waited"


@app.function(max_containers=1, scaledown_window=20)
def counts(n: int):
    yield from range(n)


@app.function(max_containers=1, scaledown_window=20)
def variable(name: str) -> str | None:
    return os.environ.get(name)


@app.cls(max_containers=1, scaledown_window=20)
class Greeter:
    """Parameters of every kind, with and without a default."""

    greeting: str = modal.parameter()
    times: int = modal.parameter(default=1)
    loud: bool = modal.parameter(default=False)
    tail: bytes = modal.parameter(default=b"!")

    @modal.method()
    def greet(self, name: str) -> str:
        said = " ".join([f"{self.greeting} {name}"] * self.times) + self.tail.decode()
        return said.upper() if self.loud else said

    @modal.method()
    def variable(self, name: str) -> str | None:
        return os.environ.get(name)


@app.cls(max_containers=1, scaledown_window=20)
class Plain:
    @modal.method()
    def double(self, x: int) -> int:
        return 2 * x
