"""A program that takes long to be imported in its container, with less time than that."""

import time

import modal

app = modal.App("slow-import")

if not modal.is_local():
    time.sleep(20)


@app.function(startup_timeout=3)
def in_a_hurry() -> str:
    return "started"


@app.function(startup_timeout=60, timeout=5)
def patient() -> str:
    return "started"
