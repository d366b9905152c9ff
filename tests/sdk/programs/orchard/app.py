"""An app inside a package: `modal run -m orchard.app`."""

import modal

from . import fruit
from .fruit import taste

app = modal.App("orchard")


@app.function()
def eat(name: str) -> str:
    return taste(name)


@app.local_entrypoint()
def main(name: str = "quince"):
    try:
        print(f"tasted {eat.remote(name)}")
    except fruit.Bruised as error:
        print(f"refused: {error} ({error.name})")
