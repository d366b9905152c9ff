"""Who belongs to a cluster, who votes in it, and what is left when machines are lost. No containers run here."""

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import NODE_START_SECONDS, Client, Node, wait_for

pytestmark = pytest.mark.timeout(300)

CONFIG = """
name = "{name}"
[cluster]
replace_voter_seconds = 3
[containers]
zygotes = false
sandboxes_ahead = 0
"""


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[str], Node]]:
    """Makes nodes by their names, and stops those that run at the end."""
    made: list[Node] = []

    def node(name: str) -> Node:
        made.append(Node(tmp_path / name, config=CONFIG.format(name=name)))
        return made[-1]

    yield node
    # All at once: one after the other, the last ones would look for their majority.
    for one in made:
        if one.keeper is not None and one.keeper.poll() is None:
            one.keeper.send_signal(signal.SIGTERM)
    for one in made:
        one.stop()


def wipe(node: Node) -> None:
    """Removes the folder of a node that does not run, with the mount that a lost one left."""
    subprocess.run(["umount", "-l", str(node.data / "trees")], check=False, capture_output=True)
    shutil.rmtree(node.data)


def consensus(node: Node) -> dict[str, Any]:
    """Returns what `shoal status --json` says of consensus."""
    return node.json("status")["consensus"]


def names(members: list[dict[str, Any]]) -> set[str]:
    """Returns the names of members."""
    return {member["name"] for member in members}


def wait_voters(node: Node, expected: set[str], followers: set[str] | None = None, seconds: float = 40) -> None:
    """Waits until exactly these vote, as a node sees it, each there and with the key of the CA."""

    def settled() -> bool:
        seen = consensus(node)
        good = all(voter["answers"] and voter["lets_in"] and voter["behind"] < 100 for voter in seen["voters"])
        return good and names(seen["voters"]) == expected and (followers is None or names(seen["learners"]) == followers)

    try:
        wait_for(f"{expected} to vote", settled, seconds, every=0.2)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{consensus(node)}") from None


def refused(node: Node, *arguments: str) -> str:
    """Returns what a command says that must fail."""
    done = node.shoal(*arguments, check=False)
    assert done.returncode == 1, f"{arguments} ended with {done.returncode}: {done.stdout}{done.stderr}"
    return done.stderr


def test_any_machine_may_be_lost_the_founder_too(make):
    """With three that vote, each has the key of the CA. The founder is lost: another node joins through the second one, gets
    the place of the founder among the voters by itself, and the founder follows when it comes back. Operators say who votes;
    who votes no more deletes the key, and says whom to ask. One node after the other is removed, whoever leads."""
    a, b, c, d = (make(name) for name in "abcd")
    a.start()
    b.join(a)
    c.join(b if any(voter["name"] == "b" and voter["lets_in"] for voter in consensus(b)["voters"]) else a)
    for node in (a, b, c):
        wait_voters(node, {"a", "b", "c"})
        assert "leader" in node.shoal("status").stdout
    a.lose()
    wait_for("a leader without the founder", lambda: b.json("status")["leader_name"] in ("b", "c"), 40)
    wait_for("the loss to be told", lambda: any("a votes and does not answer" in line for line in consensus(c)["trouble"]), 20)
    d.join(b)
    wait_voters(d, {"b", "c", "d"}, {"a"})
    # It comes back as a follower, and lets nobody in.
    a.start()
    wait_for("the founder to delete the key", lambda: not (a.data / "keys/ca.key").exists(), 40)
    said = refused(a, "token", "create", "--node")
    assert "only nodes that vote have the key" in said and "b (no-" in said, f"{said}\n{consensus(a)}\n{a.log_tail()}"
    # An operator makes it vote again, in somebody's place, and takes the vote of another.
    assert "votes from now on" in a.shoal("node", "promote", "a").stdout
    wait_for("the founder to vote", lambda: "a" in names(consensus(b)["voters"]), 40)
    wait_for("the founder to have the key", lambda: (a.data / "keys/ca.key").exists(), 40)
    c.shoal("node", "demote", "b")
    wait_voters(c, {"a", "c", "d"}, {"b"})

    def lines() -> dict[str, dict[str, Any]]:
        return {line["name"]: line for line in b.json("node", "list")}

    # Should it have led, it does so until the others have chosen another one.
    wait_for("the demoted one to follow", lambda: lines()["b"]["role"] == "follower", 40)
    # It is no member of consensus any more, in the same process: one that votes tells it what is decided, and it takes part as before.
    wait_for("a voter to tell it what is decided", lambda: lines()["b"]["told_by"] in ("a", "c", "d"), 40)
    assert "told by" in a.shoal("node", "show", "b").stdout and lines()["a"]["told_by"] is None
    b.shoal("node", "label", "b", "by=the-follower")
    assert lines()["b"]["labels"] == {"by": "the-follower"}
    wait_for("it to have all", lambda: lines()["b"]["behind"] == 0, 40)
    assert (lines()["a"]["decided"], lines()["b"]["decided"], lines()["c"]["decided"]) == ("votes", "does not vote", None)
    d.shoal("node", "drain", "c")
    assert "it drains" in refused(a, "node", "promote", "c")
    c.shoal("node", "unpin", "b")
    # One after the other is taken out, whoever leads, and asked of itself or of another one. What drained goes last.
    d.shoal("node", "undrain", "c")
    left = {"a": a, "b": b, "c": c, "d": d}
    for rest, asked in (("three nodes vote", 0), ("two nodes vote", 1), ("one node votes", 0)):
        gone = wait_for("a leader", lambda: next(iter(left.values())).json("status")["leader_name"], 40)
        asked_of = left[sorted(left, key=lambda name: name == gone)[-asked]]
        said = asked_of.shoal("node", "remove", gone, seconds=100).stdout
        assert rest in said and "wiped" in said, said
        node = left.pop(gone)
        assert node.keeper is not None
        assert node.keeper.wait(40) == 1, "a node that was removed stops"
        assert "was removed from this cluster" in node.log_tail() and not (node.data / "keys/ca.key").exists()
        wait_voters(next(iter(left.values())), set(left))
    ((last, node),) = left.items()
    assert node.json("status")["leader_name"] == last
    assert "is the only one" in refused(node, "node", "remove", last)


def test_a_cluster_without_a_majority_says_so_and_is_recovered_by_hand(make, tmp_path):
    """Of two nodes one is lost: a client of the other one reads what it waits for, and goes on when the first is back. Lost again, the
    other one shows what it knows at once, with what to do. Recovered, it is a cluster of its own, and the lost one is refused in words
    when it comes back, and joins anew when it was wiped."""
    a, b = make("a"), make("b")
    a.start()
    b.join(a)
    wait_voters(b, {"a", "b"})
    assert any("two nodes vote" in line for line in consensus(a)["trouble"])
    client = Client(b, b.create_token(), tmp_path / "home")
    a.lose()
    waiting = client.modal("secret", "create", "meanwhile", "KEY=value")
    # Its own tries are over by then.
    waiting.wait_line(r"Received Status.UNAVAILABLE", 90)
    assert "cannot read the latest state: waited 10" in waiting.text()
    a.start()
    waiting.ok(60)
    assert "meanwhile" in client.modal("secret", "list").ok(60).text()
    client.close()
    wait_voters(b, {"a", "b"})
    a.lose()
    wait_for("the loss to be known", lambda: any("nothing can be decided" in line for line in consensus(b)["trouble"]), 20)
    began = time.monotonic()
    listed = b.shoal("node", "ls")
    assert time.monotonic() - began < 10
    assert "not reached" in listed.stdout and "run `shoal recover` on it" in listed.stderr, listed
    assert "shoal recover" in b.shoal("status").stdout
    for look in (("app", "list"), ("task", "list"), ("token", "list"), ("explain", "b")):
        began, shown = time.monotonic(), b.shoal(*look)
        assert time.monotonic() - began < 10 and "this is what the node knows: the cluster has no leader" in shown.stderr, shown
    assert "nothing can be decided" in refused(b, "node", "drain", "a")
    assert "a node runs on the data folder" in (said := refused(b, "recover", "--yes")) and "`shoal status`" in said, said
    b.stop()
    done = b.shoal("recover", check=False)
    assert done.returncode == 1 and "Nothing was changed" in done.stdout and "a (no-" in done.stdout, done
    assert "It is done" in b.shoal("recover", "--yes").stdout
    b.start()
    wait_voters(b, {"b"})
    assert [line["name"] for line in b.json("node", "list")] == ["b"]
    assert b.json("status")["generation"] == 2
    # What was lost comes back, and is told to go.
    with pytest.raises(AssertionError):
        a.start()
    assert "was recovered without" in a.log_tail() and "wipe its data folder" in a.log_tail()
    assert a.keeper is not None and a.keeper.poll() == 1
    # It does as it is told.
    wipe(a)
    a.join(b)
    wait_voters(a, {"a", "b"})


def test_equal_machines_become_one_cluster_in_any_order(make, tmp_path):
    """The same command on three machines makes one cluster, once the last one is there and has the same secret; a machine that is
    wiped joins it again under another id, and bad input is refused in words."""
    a, b, c = nodes = [make(name) for name in "abc"]
    secret = "correct-horse-battery-staple-0123456789"
    (tmp_path / "secret").write_text(secret + "\n")

    def same(*order: Node) -> tuple[str, ...]:
        return ("--seeds", ",".join(f"127.0.0.1:{node.api_port}" for node in order), "--expect", "3")

    for bad, why in (
        (same(a, b, c), "needs a secret that all machines share"),
        ((*same(a, b, c), "--token", "short"), "it has 5 characters, and needs 32 at least"),
        ((*same(a, b), "--token", secret), "cannot expect 3 founders of 2 seeds"),
        (("--expect", "3"), "--expect needs --seeds"),
    ):
        a.begin(*bad)
        assert a.keeper is not None and a.keeper.wait(20) == 1
        assert why in a.log_tail(3), a.log_tail(3)
    # Each in another order, the first of the sorted ones not first, and one with another secret.
    first, *others = sorted(nodes, key=lambda node: f"127.0.0.1:{node.api_port}")
    late = others[-1]
    others[0].begin(*same(a, b, c), "--token", secret)
    first.begin(*same(c, b, a), "--token-file", str(tmp_path / "secret"))
    late.begin(*same(b, a, c), "--token", secret[::-1])
    for node in (first, late):
        wait_for("the secrets to be compared", lambda node=node: "was given another secret" in node.log_tail(), 60)
    assert not any((node.data / "keys/cluster.json").exists() for node in nodes), "no cluster is founded without all of them"
    assert "this node asks the seeds" in others[0].log.read_text()
    starting = others[0].shoal("status", check=False)
    assert f"(process {others[0].child()}) does not answer yet: it starts or stops" in starting.stderr, starting
    late.lose()
    late.begin(*same(b, a, c), "--token", secret)
    for node in nodes:
        node.wait_ready(NODE_START_SECONDS)
    for node in nodes:
        wait_voters(node, {"a", "b", "c"})
    assert len({(node.data / "keys/cluster.json").read_text() for node in nodes}) == 1
    # The first one is wiped: it founds nothing, and comes back as another node.
    first.lose()
    before = json.loads((first.data / "keys/cluster.json").read_text())
    wipe(first)
    first.start(*same(a, b, c), "--token", secret)
    assert json.loads((first.data / "keys/cluster.json").read_text()) == before
    name = first.data.name
    assert sum(line["name"] == name for line in first.json("node", "list")) == 2, "it has another id than before"
    # Both are told apart, and why the one is not reached is said in words.
    assert "2 nodes are called" in refused(first, "node", "show", name)
    told = re.compile(rf"{name} \(no-\w+\) \(not reached: .*another node answers there")
    wait_for("the old one to be told apart", lambda: told.search(others[0].shoal("status").stdout), 60)
