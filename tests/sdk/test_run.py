"""`modal run` in all its ways, and how long an app lives after its client."""

import os
import signal
import time

import pytest
from harness import PROGRAMS, wait_for

pytestmark = pytest.mark.timeout(300)


def state_of(client, app_id, *arguments):
    """Returns the state that `modal app list` shows of an app."""
    import json

    rows = json.loads(client.modal("app", "list", "--json", *arguments).ok(60).text("stdout"))
    return next((row["state"] for row in rows if row["app_id"] == app_id), "not listed")


def test_a_module_of_a_package(client, tmp_path):
    """`modal run -m PACKAGE.MODULE` imports the package by its name, here and in the container."""
    package = tmp_path / "greetings"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "words.py").write_text("WORD = 'ahoy'\n")
    (package / "main.py").write_text(
        "import modal\nfrom .words import WORD\napp = modal.App('greetings')\n"
        "@app.function()\ndef greet(name: str):\n    return f'{WORD} {name} from {__name__}'\n"
        "@app.local_entrypoint()\ndef main(name: str):\n    print(greet.remote(name))\n"
    )
    out = client.modal("run", "-m", "greetings.main", "--name", "Ada", cwd=tmp_path).ok(120).text()
    assert "ahoy Ada from greetings.main" in out


def test_arguments_come_with_their_types(client):
    """Each annotation of an entrypoint parses its argument; what is not given has its default."""
    full = ["--name", "Bo", "--times", "3", "--ratio", "2.5", "--loud", "--day", "2024-12-24", "--color", "blue", "--maybe", "7"]
    assert "got 'Bo' 3 2.5 True 2024-12-24 'blue' 7" in client.run("typed.py::types", *full).ok(120).text()
    assert "got 'Bo' 2 1.5 False 2020-02-29 'red' None" in client.run("typed.py::types", "--name", "Bo").ok(120).text()


def test_wrong_arguments_are_refused_before_anything_starts(client):
    """An argument of the wrong type, or none where one is needed, ends with 2 and names it; no app is made."""
    for arguments, named in ([], "--name"), (["--name", "x", "--times", "many"], "--times"), (["--name", "x", "--color", "mauve"], "--color"):
        running = client.run("typed.py::types", *arguments)
        assert running.wait(60) == 2
        assert named in running.text() and "ap-" not in running.text()


def test_several_entrypoints_need_a_name(client):
    """Without a name the run ends at once and lists what there is; with a name that one runs, async ones too."""
    running = client.run("typed.py")
    assert running.wait(60) != 0
    assert all(name in running.text() for name in ("types", "asynchronous", "rest", "describe"))
    assert "async got environment main" in client.run("typed.py::asynchronous").ok(120).text()
    assert "words ('a', '--b', '1')" in client.run("typed.py::rest", "a", "--b", "1").ok(120).text()


def test_quiet_prints_only_what_the_program_prints(client):
    """With -q there is no progress, no link and no log of containers; the program's own output stays."""
    running = client.modal("run", "-q", str(PROGRAMS / "detached.py") + "::quick").ok(120)
    assert running.text("stdout").strip() == "answer worked"


def test_a_run_has_the_name_it_is_given(client):
    """`modal run --name` is what the app is listed as."""
    import json

    running = client.modal("run", "--name", "nightly-check", str(PROGRAMS / "typed.py") + "::where").ok(120)
    rows = json.loads(client.modal("app", "list", "--json").ok(60).text("stdout"))
    assert next(row["description"] for row in rows if row["app_id"] == running.app_id()) == "nightly-check"


def test_a_detached_run_that_is_waited_for_ends_like_any_other(client):
    """`modal run --detach` whose entrypoint comes to its end leaves nothing running and does not wait for it."""
    begin = time.monotonic()
    running = client.modal("run", "--detach", str(PROGRAMS / "detached.py") + "::quick").ok(120)
    assert "answer worked" in running.text()
    assert "Timed out waiting" not in running.text() and time.monotonic() - begin < 60
    wait_for("the app to be stopped", lambda: state_of(client, running.app_id()) == "stopped", 30)


def test_a_detached_app_lives_on_without_its_client(client, node):
    """The client of a detached app is killed while it waits: the function comes to its end all the same, then the app does."""
    running = client.modal("run", "--detach", str(PROGRAMS / "detached.py") + "::waits", "--seconds", "20")
    running.wait_line("work begins", 120)
    app_id = running.app_id()
    running.process.kill()
    running.wait(10)
    time.sleep(7)  # Longer than an ephemeral app would have.
    assert state_of(client, app_id) == "ephemeral (detached)" and node.tasks(app_id)
    wait_for("the function to come to its end", lambda: "work ends" in client.logs(app_id), 60, every=1)
    wait_for("the app to end", lambda: state_of(client, app_id) == "stopped", 60, every=1)


def test_a_detached_app_survives_ctrl_c(client, node):
    """Ctrl-C ends the client of a detached app, says how to go on, and leaves the function running."""
    running = client.modal("run", "--detach", str(PROGRAMS / "detached.py") + "::waits", "--seconds", "12")
    running.wait_line("work begins", 120)
    app_id = running.app_id()
    running.interrupt()
    running.wait(30)
    assert "modal app stop" in running.text()
    wait_for("the function to come to its end", lambda: "work ends" in client.logs(app_id), 60, every=1)


def test_what_a_detached_program_spawned_goes_on_after_its_end(client, sdk):
    """A spawned call of a detached program ends when it is done, and its result can be had."""
    running = client.modal("run", "--detach", str(PROGRAMS / "detached.py") + "::leaves", "--seconds", "6").ok(120)
    call_id = running.wait_line(r"call fc-", 5).text.split()[-1]
    assert sdk.FunctionCall.from_id(call_id).get(timeout=60) == "worked"
    wait_for("the app to end", lambda: state_of(client, running.app_id()) == "stopped", 60, every=1)


def test_an_ephemeral_app_ends_soon_after_its_client_was_killed(client, node):
    """The connection of a killed client is closed by its machine: five seconds without a call later its app ends."""
    running = client.run("lifecycle.py::running")
    running.wait_line("quietly running", 120)
    app_id = running.app_id()
    begin = time.monotonic()
    running.process.kill()
    running.wait(10)
    wait_for("the app to be stopped", lambda: state_of(client, app_id) == "stopped", 35, every=0.5)
    assert time.monotonic() - begin > 3, "the client had time to come back"
    assert any("did not come back" in (row["stopped"] or "") for row in node.json("app", "list", "--all") if row["app_id"] == app_id)


@pytest.mark.slow
def test_an_ephemeral_app_ends_when_its_client_says_nothing_any_more(client, node):
    """A client that is frozen keeps its connection and sends no heartbeat: after 45 s its app ends, not before."""
    running = client.run("lifecycle.py::running")
    running.wait_line("quietly running", 120)
    app_id = running.app_id()
    os.kill(running.process.pid, signal.SIGSTOP)
    try:
        time.sleep(25)  # Two heartbeats that do not come.
        assert state_of(client, app_id) == "ephemeral"
        wait_for("the app to be stopped", lambda: state_of(client, app_id) == "stopped", 45, every=1)
    finally:
        os.kill(running.process.pid, signal.SIGCONT)


@pytest.mark.slow
def test_a_node_that_was_away_blames_no_client(client, node):
    """A node that was frozen for longer than any limit, and its end and new start, leave an app with its client alone."""
    running = client.run("lifecycle.py::streaming")
    running.wait_line("streaming", 120)
    app_id = running.app_id()
    pid = node.child()
    os.kill(pid, signal.SIGSTOP)
    time.sleep(50)  # The node is away for longer than a client may be silent.
    os.kill(pid, signal.SIGCONT)
    node.wait_ready(60)
    time.sleep(8)  # Time enough for a wrong conclusion.
    assert state_of(client, app_id) == "ephemeral"
    running.interrupt()
    running.wait(30)
