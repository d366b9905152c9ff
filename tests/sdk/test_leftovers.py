"""Nothing of a node is left on its machine when it has ended, however that came about."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from harness import (
    REPOSITORY,
    SANDBOXES_AHEAD,
    Machine,
    Node,
    Running,
    command_line,
    kill,
    node_environment,
    shoal_binary,
    threads,
    wait_for,
    wait_until_none,
)

pytestmark = [pytest.mark.timeout(240), pytest.mark.skipif(os.geteuid() != 0, reason="nodes need root")]
# What dev-cluster makes has names of its own, and there is one a machine.
BRIDGE = Path("/sys/class/net/shoaldev")


def workers(tag: str) -> list[int]:
    """Returns the processes that work for the containers of a node, whoever their parents are."""
    pids = (int(folder.name) for folder in Path("/proc").glob("[0-9]*"))
    return [pid for pid in pids if f"--root=/run/shoal/{tag}/runsc" in command_line(pid)]


def within(namespace: str) -> list[int]:
    """Returns the processes in a network namespace."""
    words = ["ip", "netns", "pids", namespace]
    return [int(pid) for pid in subprocess.run(words, capture_output=True, text=True, check=True, timeout=30).stdout.split()]


def has_sandboxes(tag: str) -> bool:
    """Says whether the sandboxes that a node makes ahead are there, and none is being made."""
    lines = [command_line(pid) for pid in workers(tag)]
    return sum("boot" in line for line in lines) >= SANDBOXES_AHEAD and not any("create" in line for line in lines)


def traces(node: Node) -> dict[str, object]:
    """Returns what is left of a node, by kind."""
    left: dict[str, object] = dict(Machine.now(node).since(Machine.nothing()))
    if pids := workers(node.tag):
        left["processes"] = pids
    if (folder := Path("/run/shoal", node.tag)).exists():
        left["folder"] = folder
    return left


def test_a_node_that_nobody_reads_and_that_is_killed_as_it_stops(tmp_path):
    """A node whose output nobody reads any more goes on, is started again, and stops in order. Killed with its keeper, it leaves
    sandboxes that `shoal cleanup` ends, and that command touches no node that runs. Killed just before the keeper is told to stop, it
    leaves nothing."""
    node = Node(tmp_path / "data", config="[containers]\nzygotes = false\n")
    # As in `shoal start 2>&1 | tee log`, where Ctrl-C ends tee first.
    reading, writing = os.pipe()
    node.log = Path(f"/proc/{os.getpid()}/fd/{writing}")
    try:
        node.begin()
        node.log = tmp_path / "log"
        node.wait_started()
        os.close(writing)
        os.close(reading)
        wait_for("sandboxes ahead", lambda: has_sandboxes(node.tag), 60)
        sandboxes = node.sandboxes()
        running = subprocess.run(
            [str(shoal_binary()), "cleanup", "--data", str(node.data)], capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert running.returncode == 1 and "a node runs on the data folder" in running.stderr, running
        assert sandboxes & node.sandboxes()

        node.wait_reborn(node.kill_child())
        wait_for("sandboxes ahead", lambda: has_sandboxes(node.tag), 60)
        keeper, child = node.keeper, node.child()
        os.kill(keeper.pid, signal.SIGSTOP)
        for pid in (child, keeper.pid):
            kill(pid, signal.SIGKILL)
        keeper.wait(10)
        node.keeper = None
        assert len(workers(node.tag)) >= SANDBOXES_AHEAD, "the sandboxes live on: there is something to clean"
        found = node.clean_up()
        assert found["processes"] >= SANDBOXES_AHEAD and found["mounts"] > 0, found
        assert not traces(node)
        assert set(node.clean_up().values()) == {0}

        node.start()
        wait_for("sandboxes ahead", lambda: len(node.sandboxes()) == SANDBOXES_AHEAD, 60)
        keeper = node.keeper
        node.kill_child()
        keeper.send_signal(signal.SIGTERM)
        assert keeper.wait(60) == 0
        node.keeper = None
        assert not traces(node)

        node.start()
        keeper, node.keeper = node.keeper, None
        keeper.send_signal(signal.SIGINT)
        assert keeper.wait(60) == 0
        assert not traces(node)
    finally:
        if node.keeper is not None:
            node.lose()


@pytest.mark.skipif(BRIDGE.exists(), reason="a scripts/dev-cluster runs on this machine")
def test_ctrl_c_of_a_cluster_whose_nodes_were_killed(tmp_path):
    """A node of scripts/dev-cluster is killed with its keeper, the keeper alone of another one; Ctrl-C leaves nothing of them, and what
    they said last is shown."""
    data = tmp_path / "nodes"
    process = subprocess.Popen(
        [str(REPOSITORY / "scripts/dev-cluster"), "2"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, errors="replace", bufsize=1, start_new_session=True,
        env=node_environment() | {"SHOAL_BIN": str(shoal_binary()), "SHOAL_DEV_DATA": str(data), "SHOAL_CONTAINERS__ZYGOTES": "false"},
    )  # fmt: skip
    cluster = Running(process)
    try:
        cluster.wait_line("a cluster of 2 nodes runs", 120)
        nodes = [Node(data / which) for which in ("1", "2")]
        for node in nodes:
            node.tag = node.json("status")["tag"]
            wait_for("sandboxes ahead", lambda node=node: has_sandboxes(node.tag), 60)
        for pid in (two := within("shoal-dev-2")):
            kill(pid, signal.SIGKILL)
        kill(next(pid for pid in within("shoal-dev-1") if "start" in command_line(pid)), signal.SIGKILL)
        wait_until_none("processes of node 2", lambda: [pid for pid in two if threads(pid)], 20)
        assert workers(nodes[1].tag), "its sandboxes live on: there is something to clean"

        os.killpg(process.pid, signal.SIGINT)
        # It ends by itself when no keeper is left.
        assert cluster.wait(120) in (0, 130), cluster.text()
        for node in nodes:
            assert not traces(node), cluster.text()
        assert not BRIDGE.exists() and not list(Path("/run/netns").glob("shoal-dev-*"))
        tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, timeout=30).stdout
        assert "shoaldev" not in tables
        assert cluster.find("node-1 | .*the node stops"), cluster.text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            cluster.wait(120)
        cluster.close()
