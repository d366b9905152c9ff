"""Clients of other versions than the one that the node's schema was made from, each in a virtual environment of its own."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from harness import PROGRAMS, Client, Node, wait_for
from programs import shells
from terminal import Terminal

pytestmark = pytest.mark.timeout(400)

# The last release of some series; the wire changed between them.
VERSIONS = ("1.1.4", "1.2.6", "1.4.3", "1.5.4")
# The last series that knows the spellings of the years before.
OLD = VERSIONS[:2]


@pytest.fixture
def other(node: Node, client: Client, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Client:
    """The client in the version that the test is for; installed once for a data folder."""
    folder: Path = node.data.parent / f"modal-{request.param}"
    python = folder / "bin" / "python"
    if not (folder / "whole").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True, timeout=120)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"modal=={request.param}"]
        subprocess.run(pip, check=True, timeout=240)
        (folder / "whole").touch()
    monkeypatch.setenv("SHOAL_CLIENT_PYTHON", str(python))
    return client


@pytest.mark.parametrize("other", VERSIONS, indirect=True)
def test_a_program_of_any_age_runs(other, request):
    """Calls, maps, spawns, generators, failures, classes, images and secrets through an older client, whose own code runs in the containers."""
    version = request.node.callspec.params["other"]
    said = other.run("versions.py").ok(300).text("stdout")
    (found,) = (line.removeprefix("FOUND ") for line in said.splitlines() if line.startswith("FOUND "))
    assert ast.literal_eval(found) == {
        "version": version,
        "remote": "said 1",
        "image": "marked\n",
        "generator": [0, 1, 2],
        "failed": "as it should",
        "async": 8,
        "map": ["said 0", "said 1", "said 2"],
        "spawn": "said 7",
        "concurrent": [0, 1, 2, 3, 4, 5],
        "class": 6,
        "instance": 11,
    }
    assert "saying 1" in said


@pytest.mark.parametrize("other", OLD, indirect=True)
def test_old_spellings_make_functions(other):
    """`@modal.web_endpoint()`, `keep_warm`, `concurrency_limit` and `container_idle_timeout` make functions that are called as ever;
    `modal.gpu.A100(count=4)` is understood, and refused with a sentence where there is no such GPU."""
    assert "PLAIN 1" in other.run("spelled.py").ok(200).text("stdout")
    refused = other.run("spelled.py", "--gpu")
    assert refused.wait(100) != 0
    said = " ".join(refused.text().split())
    assert "'large' asks for gpu=\"A100-40GB:4\", and this cluster has no GPU" in said, said


@pytest.mark.parametrize("other", OLD, indirect=True)
def test_processes_in_containers_by_the_server(other, node, token):
    """Clients without a channel to containers: `modal container exec` prints both streams to their ends, `modal shell ta-…` is a shell in
    a terminal of the user's size, and so is `modal shell` in a container of its own, which ends with it."""
    with shells.app.run() as app:
        call = shells.stay.spawn(600)
        task = wait_for("its container", lambda: [task["task_id"] for task in node.tasks(app.app_id)], 90)[0]
        # More than one piece, and an error beside it.
        command = "seq 1 20000; echo $MODAL_TASK_ID; echo err >&2; exit 3"
        said = other.modal("container", "exec", "--no-pty", task, "--", "sh", "-c", command).ok(60).text("stdout") + "\n"
        # Each stream by itself: the error may come in the midst of a line.
        assert said.count("err\n") == 1
        assert said.replace("err\n", "").splitlines() == [*map(str, range(1, 20001)), task]
        in_a_terminal(Terminal(other, "shell", task))
        assert task in [task["task_id"] for task in node.tasks(app.app_id)]
        call.cancel()
    before = {task["task_id"] for task in node.tasks()}
    in_a_terminal(Terminal(other, "shell"))
    wait_for("the end of its container", lambda: before >= {task["task_id"] for task in node.tasks()}, 60)
    missing = other.modal("container", "exec", "--no-pty", task, "--", "true")
    assert missing.wait(60) != 0 and "it has ended" in missing.text(), missing.text()


@pytest.mark.parametrize("other", OLD, indirect=True)
def test_an_old_client_runs_a_program_that_asks(other):
    """`modal run -i`: `modal.interact()` and `breakpoint()` in the terminal of an older client, whose own code runs in the container."""
    terminal = Terminal(other, "run", "-i", f"{PROGRAMS / 'interactive.py'}::debug", "--number", "5")
    try:
        terminal.wait(r"\(Pdb\) $", 120)
        terminal.type("p doubled + 100\r")
        terminal.wait(r"\n110\s")
        terminal.type("c\r")
        assert terminal.end(60) == 0, terminal.text()
        assert not terminal.is_raw()
    finally:
        terminal.close()


def in_a_terminal(terminal: Terminal) -> None:
    """Types into a shell, and ends it."""
    try:
        terminal.wait(r"[#$] $", 90)
        terminal.type("stty size; echo $((6 * 7)); exit\r")
        terminal.wait(rf"[\r\n]{Terminal.ROWS} {Terminal.COLUMNS}\r?\n42\r?\n")
        assert terminal.end() == 0, terminal.text()
    finally:
        terminal.close()
