"""What a program of any age does, in the words that all clients know."""

import os
import time

import modal

app = modal.App("versions")
marked = modal.Image.debian_slim().run_commands("echo marked > /mark")


@app.function(secrets=[modal.Secret.from_dict({"WORD": "said"})], retries=1, timeout=60)
def say(number: int) -> str:
    print(f"saying {number}")
    return f"{os.environ['WORD']} {number}"


@app.function(image=marked)
def mark() -> str:
    with open("/mark") as file:
        return file.read()


@app.function()
def count(to: int):
    yield from range(to)


@app.function()
def fail() -> None:
    raise ValueError("as it should")


@app.function()
async def twice(number: int) -> int:
    return 2 * number


@app.function()
@modal.concurrent(max_inputs=4)
def slowly(number: int) -> int:
    time.sleep(0.1)
    return number


@app.cls()
class Counter:
    @modal.enter()
    def begin(self) -> None:
        self.base = 5

    @modal.method()
    def add(self, number: int) -> int:
        return self.base + number


@app.cls()
class Adder:
    base: int = modal.parameter(default=5)

    @modal.method()
    def add(self, number: int) -> int:
        return self.base + number


@app.local_entrypoint()
def main() -> None:
    try:
        fail.remote()
    except ValueError as error:
        failed = str(error)
    found = {
        "version": modal.__version__,
        "remote": say.remote(1),
        "image": mark.remote(),
        "generator": list(count.remote_gen(3)),
        "failed": failed,
        "async": twice.remote(4),
        "map": list(say.map(range(3))),
        "spawn": say.spawn(7).get(),
        "concurrent": list(slowly.map(range(6))),
        "class": Counter().add.remote(1),
        "instance": Adder.with_options(timeout=50)(base=10).add.remote(1),
    }
    print("FOUND", found)
