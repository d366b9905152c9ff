"""`shoal connect`: a door on a client's machine. That it outlives the loss of a node is in test_cluster.py."""

import json
import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest
from harness import PROGRAMS, Door, Node, Running, free_ports, outer_environment, shoal_binary


@pytest.fixture
def door(node: Node, request: pytest.FixtureRequest) -> Iterator[Door]:
    """A door to the shared node."""
    one = Door(node, plain=getattr(request, "param", None) == "plain")
    yield one
    if one.process.poll() is None:
        one.close()


@pytest.mark.parametrize("door", ["plain", "mutual TLS"], indirect=True)
def test_a_program_runs_through_it(door, client):
    """A program with its files, output and result goes through the door as it goes to the node."""
    through = {"MODAL_SERVER_URL": door.url}
    run = client.modal("run", f"{PROGRAMS / 'plain.py'}::increment", "--x", "41", environment=through).ok(120)
    assert "App completed" in run.text() and f"{door.url}/apps/" in run.text(), run.text()


def test_a_node_says_that_clients_may_come(node):
    """What leads clients to nodes asks each of them, without a token."""
    assert node.healthy()


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "mutual TLS"])
def test_what_does_not_answer_is_said_at_the_start(node, tmp_path, plain):
    """Of each node that does not answer a door says why as soon as it starts, before any client comes, and leads to one that does. Where
    none answers it goes on: one may come."""
    (closed, foreign, listen) = free_ports(3)
    unknown = "nope.invalid"
    environment = outer_environment()
    if not plain:
        environment["SHOAL_CONNECT_TOKEN"] = node.json("token", "create")["connect"].split()[-1]

    def door(*nodes: str) -> Running:
        words = [str(shoal_binary()), "connect", *nodes, "--listen", f"127.0.0.1:{listen}"]
        return Running(
            subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        )

    with socket.create_server(("127.0.0.1", foreign)) as server:
        threading.Thread(target=greet_as_another, args=(server,), daemon=True).start()
        first = door(f"{unknown},127.0.0.1:{closed},127.0.0.1:{foreign}", node.url)
        try:
            # A resolver that is slow says as little as one that knows no such name.
            first.wait_line(f"{unknown}:7470: (the name .* is not known here|no answer)", 30)
            first.wait_line(f"127.0.0.1:{closed}: nobody (listens|answers) there", 30)
            first.wait_line(f"127.0.0.1:{foreign}: " + ("what answers there is no node of Shoal, it says \"SSH" if plain else "nobody answers"), 30)
            first.wait_line("MODAL_SERVER_URL=", 30)
            assert first.find(f"{node.url}:") is None, first.text()
        finally:
            first.interrupt()
            first.wait(30)
    second = door(f"127.0.0.1:{closed}")
    try:
        second.wait_line("no node answers: connections wait until one does", 30)
        assert second.process.poll() is None
    finally:
        second.interrupt()
        second.wait(30)


def greet_as_another(server: socket.socket) -> None:
    """Speaks first to whoever comes, as no node does."""
    while True:
        try:
            came, _ = server.accept()
        except OSError:
            return
        with came:
            came.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")


def test_a_token_that_is_revoked_ends_it(door, client, node):
    """A machine whose token was revoked is let in no more: the door says so and ends; started again, it is refused in words, and the
    node's audit log has it."""
    through = {"MODAL_SERVER_URL": door.url}
    client.modal("app", "list", environment=through).ok(60)
    node.shoal("token", "revoke", door.token_id)
    assert client.modal("app", "list", environment=through).wait(60) != 0
    assert door.process.wait(30) == 1
    assert "is good no more" in door.log.read_text()
    kept = [json.loads(line) for line in node.shoal("audit", "--who", door.token_id, "--method", "connect", "--json").stdout.splitlines()]
    assert kept and all(one["what"] == "refused" and "was revoked" in one["why"] for one in kept), kept


def test_what_lets_nobody_in_is_refused_in_words(node, tmp_path):
    """A token of another cluster, one for a node, one that is cut off: the door ends with exit code 1 or 2 and says why."""
    made = node.json("token", "create")["connect"].split()[-1]
    joins = node.json("token", "create", "--node")["token_secret"]
    fingerprint, token, secret = made.removeprefix("shoal-connect-").split(".")
    other = fingerprint[:-2] + ("AA" if fingerprint[-2:] != "AA" else "BA")
    (port,) = free_ports(1)
    for shown, code, why in [
        (f"shoal-connect-{fingerprint}.{token}.as-0", 1, "was shown with a wrong secret"),
        (f"shoal-connect-{fingerprint}.{token}", 1, "copy the whole token"),
        (joins, 2, 'does not begin with "shoal-connect-"'),
        (f"shoal-connect-{other[:10]}", 2, "a part of it is missing"),
        (f"shoal-connect-{other}.{token}.{secret}", 1, "belongs to another cluster than the token"),
    ]:
        done = subprocess.run(
            [str(shoal_binary()), "connect", node.url, "--listen", f"127.0.0.1:{port}", "--token", shown],
            capture_output=True, text=True, timeout=60, env=outer_environment(),
        )  # fmt: skip
        assert done.returncode == code and why in done.stderr, (shown, done.stderr)
        assert secret not in done.stderr
