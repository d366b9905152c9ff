"""What a container is: what it sees, what it may use, whom it can reach, and that nothing stays of it."""

import os
import signal
import time

import modal
import pytest
from harness import Node, command_line, descendants, wait_for, wait_until_none
from programs import containers

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def running(token):
    """The app of programs/containers.py, running for the length of a test."""
    with containers.app.run():
        yield


def test_it_is_a_sandbox_of_its_own(running):
    """The kernel is gVisor's, the processes are its own few, and the secrets of the node are not in it."""
    seen = containers.look.remote()
    assert "gvisor" in seen["uname"].lower(), seen["uname"]
    assert len(seen["processes"]) < 10, "it does not see the machine's processes"
    assert seen["task"].startswith("ta-")
    assert not [name for name in seen["environment"] if name.startswith("SHOAL_")]


def test_writes_stay_in_their_container(token):
    """What one container writes, into any folder, the next one of the same image does not see."""
    for mark in ("first", "second"):
        with containers.app.run():
            assert containers.write_everywhere.remote(mark) == []


def test_memory_limit_ends_the_container(running, node):
    """A function that takes more memory than its limit is ended; the message says so, the node and others go on."""
    with pytest.raises(Exception, match=r"(?i)memory|oom"):
        containers.eat_memory.remote(2048)
    assert containers.look.remote()["pid"] >= 1


def test_memory_within_the_limit_is_given(running):
    """Less than the limit is no trouble."""
    assert containers.eat_memory.remote(200) == 200


def test_cpu_limit_holds(running, node):
    """A function limited to half a core uses about half a second of the machine's CPU a second."""
    containers.burn.remote(0.1)
    begin, before = time.monotonic(), node.cpu_seconds_of_each()
    containers.burn.remote(4.0)
    after, seconds = node.cpu_seconds_of_each(), time.monotonic() - begin
    # What other containers of the node do meanwhile is not its own. A busy machine may give it less.
    share = max(after[group] - used for group, used in before.items() if group in after) / seconds
    assert 0.1 < share < 0.7, f"{share:.2f} of a core"


def test_timeout_ends_a_function(running):
    """`timeout=3` raises the client's FunctionTimeoutError, soon after three seconds of running."""
    containers.look.remote()  # The image is there.
    begin = time.monotonic()
    with pytest.raises(modal.exception.FunctionTimeoutError):
        containers.too_long.remote(120)
    assert time.monotonic() - begin < 60


def test_timeout_ends_a_function_that_will_not_listen(running, node):
    """A function that swallows every signal is ended by SIGKILL after its grace, and its container is gone."""
    begin = time.monotonic()
    with pytest.raises(modal.exception.FunctionTimeoutError):
        containers.too_long_and_deaf.remote(300)
    assert time.monotonic() - begin < 100


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_death_of_the_process_reaches_the_caller(running, number):
    """A container whose process is killed from inside fails its call with a sentence, and does not hang it."""
    with pytest.raises(Exception) as caught:
        containers.die.remote(int(number))
    assert str(caught.value)


def test_it_reaches_the_world_but_not_its_neighbours(running, node, client):
    """It can connect out; it can't connect to the node's loopback, its web port or another container."""
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        local = ("127.0.0.1", listener.getsockname()[1])
        answers = containers.try_connect.remote([local, ("127.0.0.1", node.api_port)])
    assert all(answer != "connected" for answer in answers.values()), answers


def test_block_network_blocks(running):
    """`block_network=True`: nothing outside is reached, not even by address."""
    assert "status" not in containers.fetch_blocked.remote("http://192.0.2.1/")
    assert "status" not in containers.fetch_blocked.remote("http://deb.debian.org/")


def test_it_holds_no_token(running, token):
    """Inside are neither the caller's token nor the node's; the channel is a socket of the task alone."""
    inside = containers.channel.remote()
    assert not inside["secrets"]
    assert token.secret not in inside["mounts"]
    assert inside["server"].startswith("unix://")


def test_nothing_stays_after_a_run(token, node, no_leftovers):
    """After an app with several containers: no task, mount, namespace, veth, cgroup or process more than before."""
    from programs import functions

    before = len(descendants(node.child()))
    with functions.app.run():
        calls = [functions.sleep.spawn(3, n) for n in range(4)]
        assert [call.get(timeout=120) for call in calls] == [0, 1, 2, 3]

    def extra() -> list[list[str]]:
        now = descendants(node.child())
        return [command_line(pid)[:3] for pid in now] if len(now) > before else []

    wait_for("no more processes below the node than before", lambda: not extra(), 60, every=0.2)


def files_of(node: Node, task: str) -> list[str]:
    """Returns what of the data folder is named after a task. Folders that go meanwhile are no matter."""
    found = [os.path.join(folder, name) for folder, folders, files in os.walk(node.data) for name in folders + files]
    return [path for path in found if task in os.path.basename(path)]


def test_nothing_stays_on_the_disk_after_a_run(token, node):
    """The folders of a container's writes and sockets are gone with it."""
    with containers.app.run():
        task = containers.look.remote()["task"]
        named = files_of(node, task)
        assert node.tasks(), f"a task is listed while its app runs; its files: {named}"
    wait_for("the task to end", lambda: not [t for t in node.tasks() if task in t.values()], 30)
    wait_until_none(f"files of the ended task {task}", lambda: [path for path in files_of(node, task) if "log" not in path], 10)
