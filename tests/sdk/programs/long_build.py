"""A program whose image takes long to build; MARK makes it an image of its own."""

import os

import modal

MARK = os.environ.get("MARK", "none")
image = modal.Image.debian_slim().run_commands(
    f"echo build of {MARK} begins && for i in $(seq 1 300); do echo step $i of {MARK}; sleep 1; done"
)
app = modal.App("long-build", image=image)


@app.function()
def f():
    return 1


@app.local_entrypoint()
def main():
    f.remote()
