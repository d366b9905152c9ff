"""Containers that fail in every way a container can: at their start, in mid-input, and at their end."""

import os
import signal
import subprocess
import sys
import threading
import time

import modal

app = modal.App("failures")


def here() -> str:
    """Returns the id of this container's task."""
    return os.environ["MODAL_TASK_ID"]


@app.cls(startup_timeout=3)
class StartsSlowly:
    @modal.enter()
    def start(self):
        time.sleep(600)

    @modal.method()
    def work(self) -> str:
        return here()


@app.cls(max_containers=1)
class Crashes:
    """Ends as it starts, each time."""

    @modal.enter()
    def start(self):
        print("a start of Crashes", flush=True)
        os._exit(9)

    @modal.method()
    def work(self, _number: int) -> str:
        return here()


@app.function(timeout=600, scaledown_window=20)
def stay(seconds: float) -> str:
    print("a try of stay", flush=True)
    time.sleep(seconds)
    return here()


@app.function(retries=1, timeout=600, scaledown_window=20)
def stay_or_try_again(tries: modal.Dict, seconds: float) -> str:
    """Stays at its first try."""
    is_first = tries.put("first", here(), skip_if_exists=True)
    print("a try of stay_or_try_again", flush=True)
    time.sleep(seconds if is_first else 0.0)
    return here()


@app.function(memory=(64, 256), retries=1)
def eats() -> int:
    print("a try of eats", flush=True)
    held = [bytearray(16 << 20) for _ in range(64)]
    return len(held)


@app.function(scaledown_window=2)
def leaves_a_child() -> str:
    """A child that ignores all signals outlives the input, in a session of its own."""
    subprocess.Popen(
        [sys.executable, "-c", "import signal, time; [signal.signal(s, signal.SIG_IGN) for s in (1, 2, 15)]; time.sleep(600)"],
        start_new_session=True,
    )
    if os.fork() == 0:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        time.sleep(600)
        os._exit(0)
    return here()


@app.function(scaledown_window=2)
def leaves_a_thread() -> str:
    """A thread that Python would wait for."""
    threading.Thread(target=time.sleep, args=(600,), daemon=False).start()
    return here()
