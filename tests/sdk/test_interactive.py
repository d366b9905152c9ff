"""`modal run -i`: functions that ask whoever runs them, in the terminal of their client."""

import re

import pytest
from terminal import Terminal

pytestmark = pytest.mark.timeout(240)

PROGRAM = "programs/interactive.py"


def test_a_function_talks_with_who_runs_it(client, node):
    """`modal.interact()`: the container's terminal has the size and the name of the user's; lines are read with editing, and without an
    echo; Ctrl-C is SIGINT; `breakpoint()` is a debugger; then the result is there, and the user's terminal is as it was. Who follows the
    app's log meanwhile sees all of it, and types nothing into it."""
    terminal = Terminal(client, "run", "-i", f"{PROGRAM}::main")
    watcher = None
    try:
        terminal.wait("not asked yet True True", 120)
        terminal.wait(rf"size {Terminal.ROWS} {Terminal.COLUMNS} of xterm-256color")
        terminal.wait(r"name\? $")
        app = re.search(r"ap-\w+", terminal.text())[0]
        watcher = Terminal(client, "app", "logs", "-f", app)
        watcher.wait(r"\[this container reads from the terminal of whoever runs its app\]")
        watcher.wait(r"size \d+")
        watcher.type("not for the program\r")
        assert terminal.is_raw() and not watcher.is_raw()
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
        (task,) = node.tasks(app)
        assert "its program has a terminal" in node.shoal("explain", task["task_id"]).stdout
        terminal.type("c\r")
        terminal.wait("after all")
        terminal.wait("RESULT Ada 6")
        assert terminal.end() == 0
        assert "hidden" not in terminal.text() and not terminal.is_raw()
        watcher.wait("<Ada> said something")
        assert "hidden" not in watcher.text()
    finally:
        terminal.close()
        if watcher is not None:
            watcher.close()


def test_what_is_typed_is_for_the_container_that_waits(client):
    """Containers that ask one after the other: the next is typed into when the last one has ended, or waits for its next input. One that
    asked before is typed into again when it works again."""
    terminal = Terminal(client, "run", "-i", f"{PROGRAM}::several")
    try:
        for question in ("first", "second"):
            terminal.wait(rf"{question}\? $", 120)
            terminal.type(f"to the {question}\r")
        terminal.wait(r"\(Pdb\) $")
        terminal.type("p number + 100\r")
        terminal.wait(r"\n120\s")
        terminal.type("c\r")
        terminal.wait(r"third\? $")
        terminal.type("to the third\r")
        terminal.wait(r"to the third> in [^?]*\(Pdb\) $")
        terminal.type("doubled = 70\r")
        terminal.type("c\r")
        terminal.wait("ANSWERS to the first to the second 41 to the third 71")
        assert terminal.end() == 0 and "concurrent PTY" not in terminal.text()
    finally:
        terminal.close()


def test_a_question_outlives_its_container_and_the_node(client, node):
    """A container that is stopped while its program asks, and a node that is started anew: the next container asks in the same terminal."""
    terminal = Terminal(client, "run", "-i", f"{PROGRAM}::ask", "--question", "who")
    try:
        terminal.wait(r"who\? $", 120)
        terminal.type("somebody")
        terminal.wait(r"who\? somebody$")
        app = re.search(r"ap-\w+", terminal.text())[0]
        (task,) = node.tasks(app)
        client.modal("container", "stop", "--yes", task["task_id"]).ok(60)
        terminal.wait(r"somebody\s*who\? $")
        node.wait_reborn(node.kill_child())
        terminal.wait(r"somebody\s*who\? \s*who\? $")
        terminal.type("me\r")
        terminal.wait("<me> in ta-")
        assert terminal.end() == 0 and not terminal.is_raw()
        assert "concurrent PTY" not in terminal.text()
    finally:
        terminal.close()


def test_without_a_terminal_it_is_refused(client):
    """A `breakpoint()` in an app that was not run with -i fails with the client's own sentence."""
    run = client.run(f"{PROGRAM.removeprefix('programs/')}::debug", "--number", "1")
    assert run.wait(120) != 0
    assert "Cannot use breakpoint() without running Modal in interactive mode" in run.text()
