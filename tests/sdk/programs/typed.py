"""Several entrypoints with arguments of many types, and functions to run without one."""

import datetime
import os
from typing import Literal

import modal

app = modal.App("typed")


@app.function()
def where() -> str:
    return f"environment {os.environ['MODAL_ENVIRONMENT']}"


@app.function()
def describe(text: str, count: int = 1, ratio: float = 0.5) -> str:
    return f"{text!r} {count!r} {ratio!r}"


@app.local_entrypoint()
def types(
    name: str,
    times: int = 2,
    ratio: float = 1.5,
    loud: bool = False,
    day: datetime.datetime = datetime.datetime(2020, 2, 29),
    color: Literal["red", "blue"] = "red",
    maybe: int | None = None,
):
    print(f"got {name!r} {times!r} {ratio!r} {loud!r} {day:%Y-%m-%d} {color!r} {maybe!r}")


@app.local_entrypoint()
async def asynchronous():
    print(f"async got {await where.remote.aio()}")


@app.local_entrypoint()
def rest(*words):
    print(f"words {words!r}")
