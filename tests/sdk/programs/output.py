"""Functions that print: many lines before a sudden end, lines with times, both streams."""

import os
import sys
import time

import modal

app = modal.App("output")


@app.function(max_containers=1)
def lines_then_exit(n: int):
    for i in range(n):
        print(f"line {i:06d}")
    sys.stdout.flush()
    # No interpreter shutdown, no atexit, no flush by anyone else: the process is gone.
    os._exit(0)


@app.function()
def ticks(n: int, every: float):
    for i in range(n):
        print(f"tick {i} printed at {time.time():.6f}", flush=True)
        time.sleep(every)


@app.function()
def both(n: int):
    for i in range(n):
        print(f"out {i:04d}", flush=True)
        print(f"err {i:04d}", file=sys.stderr, flush=True)


@app.function()
def long_line(n: int):
    print("a" * n + "|")
    print("b" * n + "|", file=sys.stderr)
    assert sys.stdout.buffer.write(b"c" * n + b"|\n") == n + 2


@app.function()
def progress(n: int, every: float):
    for i in range(n):
        sys.stdout.write(f"\r{i} of {n} at {time.time():.6f}")
        sys.stdout.flush()
        time.sleep(every)
    print()


@app.function()
def odd_bytes():
    # A line in pieces, text of several bytes a letter, bytes that are no text, no newline at the end.
    sys.stdout.write("first ")
    sys.stdout.flush()
    time.sleep(0.05)
    sys.stdout.write("second\n")
    print("naïve 🐟 läuft", flush=True)
    sys.stdout.buffer.write(b"raw \xff\xfe end\n")
    sys.stdout.write("the end without a newline")
    sys.stdout.flush()


@app.local_entrypoint()
def many(n: int = 10_000):
    # The container dies before it could answer, so the call fails; its lines must be whole.
    try:
        lines_then_exit.remote(n)
    except Exception as error:
        # In one piece and on the other stream: the client's thread prints the container's lines meanwhile.
        sys.stderr.write(f"ended by {type(error).__name__}\n")


@app.local_entrypoint()
def live(n: int = 30, every: float = 0.1):
    ticks.remote(n, every)


@app.local_entrypoint()
def streams(n: int = 200):
    both.remote(n)


@app.local_entrypoint()
def bar(n: int, every: float):
    progress.remote(n, every)


@app.local_entrypoint()
def odd():
    odd_bytes.remote()


@app.local_entrypoint()
def long(n: int = 1_000_000):
    long_line.remote(n)
