"""What a program takes for granted of the machine it runs on, and what its misdeeds must not reach."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from harness import wait_for
from programs import machine, slow_import

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def running(token):
    """The app of programs/machine.py for all tests of this file."""
    with machine.app.run() as app:
        yield app


@pytest.fixture(scope="module")
def seen(running) -> dict:
    """What a function sees of its machine."""
    return machine.about.remote()


def test_environment_and_secrets(running):
    """Secrets win over the image and later ones over earlier; what names the task can't be forged; odd values arrive as they are."""
    inside = machine.environment.remote()
    assert (inside["FIRST"], inside["SECOND"], inside["OF_IMAGE"]) == ("first", "second", "image")
    assert (inside["BOTH"], inside["PATH_OF_IMAGE"]) == ("from the second", "by a secret")
    assert (inside["EMPTY"], inside["LINES"]) == ("", "a\nb")
    assert inside["MODAL_TASK_ID"].startswith("ta-")
    assert inside["MODAL_IS_REMOTE"] == "1" and inside["MODAL_ENVIRONMENT"] == "main"


def test_environment_of_a_function(running):
    """`env=` of a function arrives, beside its secrets."""
    inside = machine.environment_of_function.remote()
    assert (inside["PLAIN"], inside["FIRST"]) == ("value", "first")


def test_stdin_is_closed(running):
    """Reading stdin gives its end at once, to a function and to its children."""
    assert machine.standard_input.remote() == (b"", False)


def test_names(seen):
    """The hostname is there and resolves, and so does localhost."""
    assert seen["hostname"]
    assert seen["address"].count(".") == 3
    assert seen["localhost"] == "127.0.0.1"
    assert seen["cwd"] == "/root" and seen["user"] == (0, 0) and seen["tmp"] == "0o41777"


def test_ulimits(seen):
    """Enough open files for servers; no limit of processes or memory that surprises."""
    unlimited = -1
    assert seen["open files"][0] >= 65536
    assert seen["memory"] == (unlimited, unlimited)
    assert seen["processes"][0] == unlimited or seen["processes"][0] >= 1 << 15
    assert seen["stack"][0] >= 8 << 20
    assert seen["core"][0] in (0, unlimited)


def test_shared_memory(running, seen):
    """/dev/shm has room for data loaders, and is shared between processes."""
    assert seen["shm"] >= 64 << 20
    assert machine.share_memory.remote(48) == 7


def test_cores(seen):
    """A function without a hard limit may use all of the machine's cores, and sees as many, however it asks."""
    assert seen["cpus"] == seen["affinity"] == os.cpu_count()


def test_cores_of_a_limited_function(running):
    """A function that may use one core at most sees one core, so that its pools of threads and processes fit it."""
    assert machine.cores.remote() == (1, 1, 1)


def test_processes(running):
    """fork, a pool of processes, a shell with a pipe, two hundred threads: all of it works and is waited for."""
    done = machine.fork_and_pool.remote()
    assert done["codes"] == [0, 1, 2, 3, 4]
    assert done["doubled"] == [2 * x for x in range(10)]
    assert done["shell"] == "21\n"
    assert machine.threads.remote(200) == 200


def test_own_signals(running):
    """A function gets a signal that it sends to itself."""
    assert machine.handle_own_signal.remote() == [12]


def gone(node, tag: str) -> bool:
    return not [task for task in node.tasks() if task["function"] == tag]


def test_children_that_are_left_behind(running, node):
    """Children that outlive a function and ignore every request to stop end with its container, soon after it is told to."""
    assert machine.leave_children.remote(3) >= 1
    wait_for("the container with its children to end", lambda: gone(node, "leave_children"), 30)


def test_signals_that_are_trapped(running, node):
    """A function that ignores every signal does not keep its container: the grace ends it."""
    task = machine.trap_signals.remote()
    assert task.startswith("ta-")
    wait_for("the container to end", lambda: gone(node, "trap_signals"), 60)


def test_a_container_that_deletes_itself(running, node):
    """Deleting everything it can reach harms that container alone; the image and other containers are as they were."""
    left = machine.delete_everything.remote()
    assert "__modal" in left
    assert machine.still_there.remote()
    wait_for("the emptied container to end", lambda: gone(node, "delete_everything"), 40)


def test_out_of_memory_takes_only_its_own_container(running, node):
    """A function over its limit fails by name of the cause, also when a child took the memory; a neighbour does not notice."""
    neighbour = machine.wait.spawn(15)
    wait_for("the neighbour to run", lambda: machine.wait.get_current_stats().num_running_inputs == 1, 60)
    for function in (machine.eat, machine.eat_in_a_child):
        with pytest.raises(Exception, match="(?i)memory"):
            function.remote(1024)
    assert neighbour.get(timeout=60).startswith("ta-")
    assert machine.eat.remote(50) == 50, "the function goes on in a new container"


@pytest.fixture
def far_away(node) -> Iterator[str]:
    """An address beyond this machine, in a namespace of its own, where port 8000 answers with who asks."""
    name = f"far-{node.tag}"[:13]
    listener = (
        "import socket\n"
        "s = socket.create_server(('198.51.100.2', 8000))\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    c, who = s.accept()\n"
        "    c.sendall(who[0].encode())\n"
        "    c.close()\n"
    )

    def ip(words: str) -> None:
        subprocess.run(["ip", *words.split()], check=True)

    ip(f"netns add {name}")
    try:
        ip(f"link add {name} type veth peer name eth0 netns {name}")
        ip(f"addr add 198.51.100.1/24 dev {name}")
        ip(f"link set {name} up")
        ip(f"-n {name} addr add 198.51.100.2/24 dev eth0")
        ip(f"-n {name} link set eth0 up")
        ip(f"-n {name} link set lo up")
        server = subprocess.Popen(["ip", "netns", "exec", name, sys.executable, "-c", listener], stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None and server.stdout.readline() == "ready\n"
            yield "198.51.100.2"
        finally:
            server.kill()
            server.wait(10)
    finally:
        ip(f"netns del {name}")


def test_the_world_by_nat(running, far_away, node):
    """A container reaches an address beyond the machine, which sees the machine's own; `block_network` reaches the node's API alone."""
    world = (far_away, 8000)
    assert machine.connect_open.remote([world]) == {f"{far_away}:8000": "198.51.100.1"}
    gateway = machine.route.remote()
    api = (gateway, node.api_port)
    others = [(gateway, 22), (gateway, 111), ("198.51.100.1", node.api_port)]
    blocked = machine.connect_blocked.remote([world, api, *others])
    assert blocked.pop(f"{gateway}:{node.api_port}") == "connected"
    assert "connected" not in blocked.values() and "198.51.100.1" not in blocked.values(), blocked


def test_startup_timeout(token, sdk):
    """A container that is not ready within `startup_timeout` fails what waits, with the time in the message; one with more time is waited for."""
    with slow_import.app.run():
        with pytest.raises(sdk.exception.Error, match="did not start within 3 s"):
            slow_import.in_a_hurry.remote()
        # An input's own timeout does not run while its container starts.
        assert slow_import.patient.remote() == "started"


def test_exit_hooks_when_a_container_scales_down(deployed, client, node, sdk, unique):
    """A container that was idle for its scaledown window runs its exit hooks, and what they print is kept."""
    deployed("scale.py", unique)
    sdk.Cls.from_name(unique, "Leaver")().work.remote()

    def said() -> str:
        return node.shoal("logs", unique).stdout

    def besides() -> object:
        return said(), node.tasks(), node.log_tail()

    wait_for("the exit hook's line", lambda: "exit hook of a Leaver ran" in said(), 40, every=0.5, besides=besides)
    wait_for("its container to end", lambda: not [t for t in node.tasks() if t["function"] == "Leaver.*"], 20)


def test_disk_of_a_container(running, node):
    """A file of 300 MB is written, and its space is given back with the container."""
    assert machine.fill_disk.remote(300) == 300 << 20
