"""A function that asks for a region, for disk, as its environment says."""

import os

import modal

app = modal.App("placed")


@app.function(region=os.environ.get("PLACED_REGION") or None, nonpreemptible=bool(os.environ.get("PLACED_FIRM")))
def where() -> str:
    return "placed"


@app.function(ephemeral_disk=int(os.environ.get("PLACED_DISK", "0")) or None)
def fill(mebibytes: int) -> str:
    """Writes so much; returns the error if there is one."""
    try:
        with open("/fill", "wb") as file:
            for _ in range(mebibytes):
                file.write(bytes(1 << 20))
            return "wrote all"
    except OSError as error:
        return os.strerror(error.errno)


@app.local_entrypoint()
def main():
    print(where.remote())
    if "PLACED_DISK" in os.environ:
        print("with less:", fill.remote(48), "with more:", fill.remote(80))
