"""Functions that ask whoever runs them: `modal run -i`."""

import getpass
import os
import readline  # noqa: F401  so that the line that `input` reads can be edited
import time

import modal
from modal.experimental import stop_fetching_inputs

app = modal.App("interactive")


@app.function()
def talk() -> str:
    print("not asked yet", os.isatty(0), os.isatty(1))
    modal.interact()
    size = os.get_terminal_size()
    print(f"size {size.lines} {size.columns} of {os.environ.get('TERM')}")
    name = input("name? ")
    secret = getpass.getpass("secret? ")
    print(f"<{name}> said something of {len(secret)} letters")
    try:
        print("sleeping", flush=True)
        time.sleep(200)
    except KeyboardInterrupt:
        print("interrupted")
    doubled = 2 * len(name)
    breakpoint()
    print("after all")
    return f"{name} {doubled}"


@app.function()
def ask(question: str) -> str:
    """Ends its container."""
    stop_fetching_inputs()
    modal.interact()
    answer = input(f"{question}? ")
    print(f"<{answer}> in {os.environ['MODAL_TASK_ID']}")
    return answer


@app.function(max_containers=1)
def debug(number: int) -> int:
    doubled = 2 * number
    breakpoint()
    return doubled + 1


@app.local_entrypoint()
def main() -> None:
    print("RESULT", talk.remote())


@app.local_entrypoint()
def several() -> None:
    """Containers that end, and one that stays while others ask."""
    print("ANSWERS", ask.remote("first"), ask.remote("second"), debug.remote(20), ask.remote("third"), debug.remote(30))
