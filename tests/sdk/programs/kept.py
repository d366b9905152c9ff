"""A program whose image and arguments take some room in the chunk store."""

import os

import modal

MARK = os.environ.get("MARK", "none")

app = modal.App("kept")
# Different for each mark, large enough to be seen, and the same whoever makes it.
BALLAST = f"import random; open('/ballast-{MARK}', 'wb').write(random.Random('{MARK}').randbytes(3_000_000))"
image = modal.Image.debian_slim().run_commands(f'python -c "{BALLAST}"')


@app.function(image=image)
def size(data: bytes = b"") -> int:
    return len(data) + sum(os.path.getsize(f"/{name}") for name in os.listdir("/") if name.startswith("ballast-"))


@app.function(image=image)
def read() -> int:
    return sum(len(open(f"/{name}", "rb").read()) for name in os.listdir("/") if name.startswith("ballast-"))


@app.function(image=modal.Image.debian_slim())
def nothing() -> str:
    return "nothing"


@app.function()
def chatter(n: int):
    for number in range(n):
        print(f"line {number:06d} {'x' * 1000}")


@app.local_entrypoint()
def chat(n: int = 2000):
    chatter.remote(n)


@app.local_entrypoint()
def large(times: int = 8):
    print("sizes", [size.remote(os.urandom(3_000_000)) for _ in range(times)])


@app.local_entrypoint()
def base():
    print(nothing.remote())


@app.local_entrypoint()
def main(extra: int = 0):
    print(f"size {size.remote(b'x' * extra)}")
