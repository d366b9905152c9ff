"""Spellings of programs that were written years ago; a client of today refuses them."""

import modal

app = modal.App("spelled")


@app.function()
@modal.web_endpoint()
def page() -> dict:
    return {"is": "a page"}


@app.function(keep_warm=0, concurrency_limit=1, container_idle_timeout=5)
def plain() -> int:
    return 1


@app.local_entrypoint()
def main(gpu: bool = False) -> None:
    print("PLAIN", plain.remote())


if __name__ != "__main__" and modal.is_local():
    import sys

    if "--gpu" in sys.argv:

        @app.function(gpu=modal.gpu.A100(count=4))
        def large() -> int:
            return 4
