"""A program whose module can be read by the client and fails in the container."""

import modal

app = modal.App("broken-import")

if not modal.is_local():
    import package_that_nobody_has  # type: ignore[import-not-found]  # noqa: F401


@app.function()
def f():
    return 1


@app.local_entrypoint()
def main():
    f.remote()
