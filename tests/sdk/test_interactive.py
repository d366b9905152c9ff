"""`modal run -i`: functions that ask whoever runs them, in the terminal of their client."""

import pytest
from terminal import Terminal

pytestmark = pytest.mark.timeout(240)

PROGRAM = "programs/interactive.py"


def test_a_function_talks_with_who_runs_it(client):
    """`modal.interact()`: the container's terminal has the size and the name of the user's; lines are read with editing, and without an
    echo; Ctrl-C is SIGINT; `breakpoint()` is a debugger; then the result is there, and the user's terminal is as it was."""
    terminal = Terminal(client, "run", "-i", f"{PROGRAM}::main")
    try:
        terminal.wait("not asked yet True True", 120)
        terminal.wait(rf"size {Terminal.ROWS} {Terminal.COLUMNS} of xterm-256color")
        terminal.wait(r"name\? $")
        # The last letter is put in front of the others.
        terminal.type("da\x1b[D\x1b[DA\r")
        terminal.wait(r"secret\? $")
        terminal.type("hidden\r")
        terminal.wait("<Ada> said something of 6 letters")
        terminal.wait("sleeping")
        terminal.type("\x03")
        terminal.wait("interrupted")
        terminal.wait(r"\(Pdb\) $")
        terminal.type("p doubled + 100\r")
        terminal.wait(r"\n106\s")
        terminal.type("c\r")
        terminal.wait("after all")
        terminal.wait("RESULT Ada 6")
        assert terminal.end() == 0
        assert "hidden" not in terminal.text()
    finally:
        terminal.close()
