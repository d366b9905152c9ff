"""Ctrl-C in each state of a program: exit hooks run and no container is left."""

import time

import pytest
from harness import CONTAINER_GONE_SECONDS, SANDBOXES_AHEAD, wait_for, wait_until_none

pytestmark = pytest.mark.timeout(300)

# How long the client may take to end after Ctrl-C: it drains logs for up to 10 s.
CLIENT_ENDS_SECONDS = 60


def end_by_ctrl_c(node, running) -> str:
    """Interrupts, and fails if tasks of the app outlive the client. Returns the app's id."""
    app_id = running.app_id()
    running.interrupt()
    running.wait(CLIENT_ENDS_SECONDS)
    wait_until_none(f"containers of {app_id}", lambda: node.tasks(app_id), CONTAINER_GONE_SECONDS)
    return app_id


def test_while_building(client, node, unique, no_leftovers):
    """Ctrl-C in a build ends the client at once and the build's sandbox soon after."""
    running = client.run("long_build.py", environment={"MARK": unique})
    running.wait_line(rf"step 2 of {unique}", 180)
    wait_for("the build's sandbox beside those made ahead", lambda: len(node.sandboxes()) > SANDBOXES_AHEAD, 60)
    end_by_ctrl_c(node, running)
    wait_for("the build's sandbox to be gone", lambda: len(node.sandboxes()) <= SANDBOXES_AHEAD, 60)


def test_while_queued(client, node, no_leftovers):
    """Ctrl-C while inputs wait for the only container ends the running one and starts none of the others."""
    running = client.run("lifecycle.py::queued")
    running.wait_line("has the only container", 120)
    app_id = end_by_ctrl_c(node, running)
    time.sleep(1)  # Long enough for a container that should not come.
    assert not node.tasks(app_id)
    assert running.text().count("has the only container") == 1


def test_while_running(client, node, no_leftovers):
    """Ctrl-C while a function sleeps: its exit hook runs, and what the hook prints is shown."""
    running = client.run("lifecycle.py::running")
    running.wait_line("quietly running", 120)
    end_by_ctrl_c(node, running)
    assert "exit hook ran" in running.text()


def test_while_streaming(client, node, no_leftovers):
    """Ctrl-C while output streams: its exit hook runs, and the stream ends with the hook's line."""
    running = client.run("lifecycle.py::streaming")
    running.wait_line("streaming", 120)
    time.sleep(1)  # Into the stream.
    end_by_ctrl_c(node, running)
    text = running.text()
    assert "exit hook ran" in text
    assert text.rindex("exit hook ran") > text.rindex("streaming"), "the hook's line is the last of the container"


def test_when_the_client_just_vanishes(client, node, no_leftovers):
    """A client killed with SIGKILL says no goodbye; its app is stopped when its heartbeats stay away."""
    running = client.run("lifecycle.py::running")
    running.wait_line("quietly running", 120)
    app_id = running.app_id()
    running.process.kill()
    running.wait(10)
    wait_for(f"the app {app_id} to be given up", lambda: not node.tasks(app_id), 120, every=0.5)
    wait_for("the exit hook's line", lambda: "exit hook ran" in client.logs(app_id), 30)
