"""`modal shell`: into a container that is there, and into a fresh one; and the sandboxes under it."""

import modal
import pytest
from harness import PROGRAMS, wait_for
from programs import shells
from terminal import Terminal

pytestmark = pytest.mark.timeout(240)

REFERENCE = f"{PROGRAMS / 'shells.py'}::stay"


def test_into_a_fresh_container(client, node):
    """`modal shell FILE::FUNCTION` in a terminal: the function's image, files and secrets, the terminal's size; when the shell ends, so
    do the client, its app and the container."""
    before = {task["task_id"] for task in node.tasks()}
    terminal = Terminal(client, "shell", REFERENCE)
    try:
        terminal.wait(r"[#$] $", 90)
        (task,) = [task for task in node.tasks() if task["task_id"] not in before]
        terminal.type('stty size; echo "<$KNOWN>"; ls /root; echo $MODAL_TASK_ID; pwd\r')
        terminal.wait(rf"[\r\n]{Terminal.ROWS} {Terminal.COLUMNS}\r?\n")
        terminal.wait(r"[\r\n]<to the function>\r?\n")
        terminal.wait(r"[\r\n]shells.py\r?\n")
        terminal.wait(rf"[\r\n]{task['task_id']}\r?\n")
        terminal.type("exit\r")
        assert terminal.end() == 0
        wait_for("the end of the container", lambda: task["task_id"] not in {task["task_id"] for task in node.tasks()}, 30)
    finally:
        terminal.close()


def test_a_command_without_a_terminal(client):
    """`modal shell FILE::FUNCTION -c COMMAND` with a pipe in place of a terminal prints what the command prints, and ends."""
    done = client.modal("shell", REFERENCE, "-c", "echo one; python -c 'print(1 + 1)'").ok(120)
    assert done.text("stdout").splitlines()[-2:] == ["one", "2"]


def test_without_a_function(client, node):
    """`modal shell` alone: a shell in the default image, in a terminal of its size; nothing is left of it."""
    before = {task["task_id"] for task in node.tasks()}
    terminal = Terminal(client, "shell")
    try:
        terminal.wait(r"[#$] $", 90)
        terminal.type("stty size; echo $((6 * 7)); python3 -c 'import os; print(os.isatty(0), os.get_terminal_size().columns)'; exit\r")
        terminal.wait(rf"[\r\n]{Terminal.ROWS} {Terminal.COLUMNS}\r?\n42\r?\nTrue {Terminal.COLUMNS}\r?\n")
        assert terminal.end() == 0
        wait_for("the end of its container", lambda: before >= {task["task_id"] for task in node.tasks()}, 30)
    finally:
        terminal.close()


def test_into_a_container_that_is_there(client, node, token):
    """`modal shell ta-…` is a shell in a running container of a function; the container goes on when it ends."""
    with shells.app.run() as app:
        call = shells.stay.spawn(600)
        task = wait_for("its container", lambda: [task["task_id"] for task in node.tasks(app.app_id)], 90)[0]
        terminal = Terminal(client, "shell", task)
        try:
            terminal.wait(r"[#$] $", 90)
            terminal.type("echo $MODAL_TASK_ID; exit\r")
            terminal.wait(rf"[\r\n]{task}\r?\n")
            terminal.end()
        finally:
            terminal.close()
        assert task in [task["task_id"] for task in node.tasks(app.app_id)]
        call.cancel()


@pytest.fixture
def app(token, unique, client):
    """An app for sandboxes."""
    yield modal.App.lookup(unique, create_if_missing=True)
    client.stop_app(unique)


def test_a_sandbox_ends_as_its_program_does(app, node, unique):
    """Its exit code is its return code, for whoever asks; its variables are its own and a secret's; processes can be run in it."""
    sandbox = modal.Sandbox.create("sh", "-c", "sleep 1000; exit 1", app=app, env={"COLOUR": "red"}, timeout=300, workdir="/tmp")
    process = sandbox.exec("sh", "-c", "echo $COLOUR $MODAL_SANDBOX_ID; pwd; echo err >&2; cat; exit 7")
    process.stdin.write(b"typed")
    process.stdin.write_eof()
    process.stdin.drain()
    assert process.stdout.read() == f"red {sandbox.object_id}\n/tmp\ntyped" and process.stderr.read() == "err\n"
    assert process.wait() == 7 and sandbox.poll() is None
    sandbox.exec("sh", "-c", "kill $(pidof sleep)").wait()
    sandbox.wait(raise_on_termination=False)
    assert sandbox.returncode == 1
    again = modal.Sandbox.from_id(sandbox.object_id)
    assert again.poll() == 1
    with pytest.raises(modal.exception.NotFoundError):
        sandbox.exec("true")


def test_a_sandbox_ends_by_its_timeout_and_by_its_user(app, node):
    """`timeout=` and `terminate()` end it, each by its name, and its container is gone; what is not served is named."""
    short = modal.Sandbox.create("sleep", "1000", app=app, timeout=2)
    long = modal.Sandbox.create("sleep", "1000", app=app, timeout=300)
    with pytest.raises(modal.exception.SandboxTimeoutError):
        short.wait()
    long.terminate()
    with pytest.raises(modal.exception.SandboxTerminatedError):
        long.wait()
    wait_for("the end of their containers", lambda: not node.tasks(app.app_id), 45)
    with pytest.raises(Exception, match="does not serve name of sandboxes yet"):
        modal.Sandbox.create("true", app=app, name="x")
    with pytest.raises(Exception, match="no node has that"):
        modal.Sandbox.create("true", app=app, cpu=4000)
