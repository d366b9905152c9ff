"""A program whose image takes some seconds to build; MARK makes it an image of its own."""

import os

import modal

MARK = os.environ.get("MARK", "none")
image = (
    modal.Image.debian_slim()
    .run_commands(f"echo first of {MARK} > /first")
    .run_commands(f"for i in 1 2 3 4 5 6 7 8; do echo step $i of {MARK}; sleep 1; done; echo second > /second")
)
app = modal.App("slow-build", image=image)


@app.function()
def read() -> str:
    return open("/first").read() + open("/second").read()


@app.local_entrypoint()
def main():
    print("read", read.remote().split())
