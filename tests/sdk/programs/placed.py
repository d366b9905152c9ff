"""A function that asks for a region, as its environment says."""

import os

import modal

app = modal.App("placed")


@app.function(region=os.environ.get("PLACED_REGION") or None, nonpreemptible=bool(os.environ.get("PLACED_FIRM")))
def where() -> str:
    return "placed"


@app.local_entrypoint()
def main():
    print(where.remote())
