"""Functions that ask whoever runs them: `modal run -i`."""

import getpass
import os
import readline  # noqa: F401  so that the line that `input` reads can be edited
import time

import modal

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


@app.function(cpu=0.25, max_containers=1, single_use_containers=True)
def ask(question: str) -> str:
    modal.interact()
    return input(f"{question}? ")


@app.function()
def stop() -> None:
    breakpoint()


@app.local_entrypoint()
def main() -> None:
    print("RESULT", talk.remote())


@app.local_entrypoint()
def twice() -> None:
    """Two containers, one after the other."""
    print("ANSWERS", [ask.remote(question) for question in ("first", "second")])
