"""Two nodes that are one cluster: what is done through one is there through the other, wherever its parts run."""

import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from harness import PROGRAMS, SANDBOXES_AHEAD, Client, Door, Node, founder, wait_for, wait_until_none
from terminal import Terminal

pytestmark = pytest.mark.timeout(600)


class Pair(NamedTuple):
    """The node that founded the cluster, where calls are at home, and one that joined; a client of each."""

    home: Node
    other: Node
    of_home: Client
    of_other: Client


def named(name: str) -> str:
    """Returns the configuration of a node to which calls move soon after it came."""
    return f'name = "{name}"\n[calls]\nsettle_seconds = 1\n'


@pytest.fixture(scope="module")
def nodes(module_folder: Path, seed: Path) -> Iterator[tuple[Node, Node]]:
    """A cluster of two."""
    home, other = founder(module_folder / "home", seed, named("home")), Node(module_folder / "other", config=named("other"))
    try:
        home.start()
        other.join(home)
        yield home, other
    finally:
        other.stop()
        home.stop()


@pytest.fixture
def pair(nodes: tuple[Node, Node], tmp_path: Path) -> Iterator[Pair]:
    """The cluster, with a client of each node. One token serves both."""
    home, other = nodes
    token = home.create_token()
    clients = Client(home, token, tmp_path / "home"), Client(other, token, tmp_path / "other")
    yield Pair(home, other, *clients)
    for client in clients:
        client.close()


@contextmanager
def drained(node: Node, name: str) -> Iterator[None]:
    """Keeps tasks from a node, so that they run on the other one."""
    wait_until_none("tasks of earlier tests", node.tasks, 60, every=0.2)
    node.shoal("node", "drain", name)
    try:
        yield
    finally:
        node.shoal("node", "undrain", name)


def test_each_node_shows_both(pair):
    """`shoal node list` shows both from either, one leads, each reaches the other; details are in `shoal node show`."""
    for node in (pair.home, pair.other):

        def settled(node: Node = node) -> bool:
            lines = node.json("node", "list")
            # One that joined a moment ago follows at first.
            return sorted(line["role"] for line in lines) == ["leader", "voter"] and all(line["connected"] for line in lines)

        wait_for("a vote for both, and a way to both", settled, 60)
        assert {line["name"] for line in node.json("node", "list")} == {"home", "other"}
    shown = pair.other.shoal("node", "show", "home").stdout
    assert f":{pair.home.api_port}/udp" in shown and "accepts tasks" in shown


def test_labels_and_drains_are_seen_everywhere(pair):
    """Labels are set and taken away one by one, by keys that can be told apart; draining is seen through the other node."""
    pair.home.shoal("node", "label", "other", "zone=a", "rack=7")
    pair.other.shoal("node", "label", "other", "rack=")
    odd = pair.other.shoal("node", "label", "other", "a b=c", check=False)
    assert odd.returncode == 1 and '"a b" cannot be the key of a label' in odd.stderr, odd
    assert pair.home.json("node", "show", "other")["labels"] == {"zone": "a"}
    with drained(pair.other, "other"):
        assert pair.home.json("node", "show", "other")["state"] == "drains"
    assert pair.home.json("node", "show", "other")["state"] == "accepts tasks"


def refused(node: Node, *arguments: str) -> str:
    """Returns what a start says that must not come to anything."""
    with pytest.raises(AssertionError) as caught:
        node.start(*arguments)
    assert node.keeper is not None and node.keeper.poll() == 1, str(caught.value)
    return node.log_tail()


def test_a_process_in_a_container_of_another_node(pair, tmp_path):
    """`modal container exec` through the node that does not have the container, and through `shoal connect`: its output comes, however
    much, and a program that is none is refused in words; the audit log has it, of the node that was asked, and is read through any."""
    with drained(pair.other, "other"):
        run = pair.of_home.run("shells.py::stay", "--seconds", "300")
        app = run.app_id()
        task = wait_for("its container", lambda: [task["task_id"] for task in pair.home.tasks(app)], 90)[0]
    ours = ["container", "exec", "--no-pty", task, "--", "sh", "-c", "echo $MODAL_TASK_ID; seq 200000 | md5sum"]
    expected = [task, "0e10426a1d5bddffcef02f1345787128  -"]
    assert pair.of_other.modal(*ours).ok(60).text("stdout").splitlines() == expected
    missing = pair.of_other.modal("container", "exec", "--no-pty", task, "no-such-program")
    assert missing.wait(60) != 0 and "no-such-program" in missing.text()
    terminal = Terminal(pair.of_other, "container", "exec", task, "bash")
    try:
        terminal.wait(r"[#$] $")
        terminal.type("echo be''gins; sleep 100; echo ended with $?; exit\r")
        # What is typed behind a line that is not read yet may take it away.
        terminal.wait(r"begins\s")
        terminal.type("\x03")
        terminal.wait(r"\^C")
        terminal.type("exit\r")
        terminal.end()
    finally:
        terminal.close()
    door = Door(pair.other)
    try:
        assert pair.of_other.modal(*ours, environment={"MODAL_SERVER_URL": door.url}).ok(60).text("stdout").splitlines() == expected
    finally:
        door.close()
    run.interrupt()
    run.wait(60)
    ran = [json.loads(line) for line in pair.home.shoal("audit", "--what", "executed", "--json").stdout.splitlines()]
    assert [line["node"] for line in ran if task in line["why"] and "md5sum" in line["why"]] == ["other"] * 2
    assert not pair.other.shoal("audit", "--what", "executed", "--node", "home").stdout


def test_a_program_on_another_node_asks(pair):
    """`modal run -i` through the node that does not have the container: what its program asks is answered, line by line as it is edited."""
    with drained(pair.other, "other"):
        terminal = Terminal(pair.of_other, "run", "-i", f"{PROGRAMS / 'interactive.py'}::ask", "--question", "who")
        try:
            terminal.wait(r"who\? $", 120)
            terminal.type("somebody else")
            terminal.wait(r"who\? somebody else$")
            # The line is taken back.
            terminal.type("\x15you\r")
            terminal.wait("<you> in ta-")
            assert terminal.end() == 0, terminal.text()
        finally:
            terminal.close()


def test_who_has_no_right_to_join_hears_why(pair, tmp_path):
    """A used token, a revoked one, one of no use, one of another cluster: refused in words on the new node, and in the audit."""
    join = pair.home.json("token", "create", "--node")["join"].split()
    third = Node(tmp_path / "third", config=named("third"))
    third.start(*join[2:])
    third.stop()
    without = pair.home.shoal("audit", "--tail", "1", check=False)
    assert without.returncode == 1 and "records of node third are missing" in without.stderr and without.stdout.count("\n") == 1
    pair.home.shoal("node", "remove", "third")
    used = refused(Node(tmp_path / "fourth"), *join[2:])
    assert "was used by node" in used and "shoal token create --node" in used, used
    audit = [json.loads(line) for line in pair.home.shoal("audit", "--json").stdout.splitlines()]
    assert any("cannot let a node join" in line["why"] and "was used" in line["why"] for line in audit)
    # Who was removed is told so, and does not come back.
    removed = refused(third)
    assert "was removed from this cluster" in removed and "wipe its data folder" in removed, removed
    revoked = pair.home.json("token", "create", "--node")
    pair.home.shoal("token", "revoke", revoked["token_id"])
    said = refused(Node(tmp_path / "fifth"), *revoked["join"].split()[2:])
    assert "was revoked" in said, said
    said = refused(Node(tmp_path / "sixth"), "--join", join[3], "--token", "ak-abc:as-def")
    assert "does not begin with" in said and "shoal token create --node" in said, said
    foreign = re.sub(r"shoal-join-.", lambda found: "shoal-join-" + ("A" if found.group()[-1] != "A" else "B"), join[5])
    said = refused(Node(tmp_path / "seventh"), "--join", join[3], "--token", foreign)
    assert "another cluster" in said, said
    assert {line["name"] for line in pair.home.json("node", "list")} == {"home", "other"}


def test_deployed_here_called_there(pair, unique):
    """What is deployed through one node is found and called through the other at once, and stopped through either."""
    pair.of_home.deploy("spread.py", unique, seconds=500)  # The first image is built from nothing.
    program = f"""
import modal
f = lambda name: modal.Function.from_name({unique!r}, name)
print("double", f("double").remote(4))
print("map", list(f("double").map(range(200))) == [2 * x for x in range(200)])
print("generator", list(f("count").remote_gen(50)) == list(range(50)))
big = bytes(range(256)) * 20_000
answer = f("length").remote(big)
print("blob", int.from_bytes(answer[:8], "little") == len(big), answer[8:] == big)
try:
    f("fail").remote()
except KeyError as error:
    print("error", error)
call = f("double").spawn(8)
print("call", call.object_id)
print("spawned", call.get(timeout=60))
"""
    said = pair.of_other.start("-c", program).ok(200).text()
    for line in ("double 8", "map True", "generator True", "blob True True", "error 'what was not found'", "spawned 16"):
        assert line in said, said
    # Its result is read again through the other node.
    (call,) = re.findall(r"^call (fc-\w+)$", said, re.M)
    again = f"import modal; print('again', modal.FunctionCall.from_id({call!r}).get(timeout=10))"
    assert "again 16" in pair.of_home.start("-c", again).ok(60).text()
    pair.of_other.stop_app(unique)
    assert unique not in {app["name"] for app in pair.home.json("app", "list") if not app["stopped"]}


@pytest.mark.parametrize("asked", ["home", "other"])
def test_a_container_runs_where_its_image_is_not(pair, asked):
    """A node that has nothing of an image runs it, from chunks that it gets as they are needed; what is printed there is seen
    through either node."""
    client = pair.of_home if asked == "home" else pair.of_other
    with drained(pair.home, "home"):
        running = client.run("spread.py::one", "--x", "33").ok(200)
    assert "double 66" in running.text() and "doubling 33" in running.text(), running.text()
    assert any("doubling 33" in line for line in pair.of_home.logs(running.app_id()))
    assert any("doubling 33" in line for line in pair.of_other.logs(running.app_id()))
    for node in (pair.home, pair.other):
        assert "doubling 33" in node.shoal("logs", running.app_id()).stdout, "an operator sees it on either node"


def test_an_image_built_by_one_node_runs_on_the_other(pair, unique):
    """An image is built by the node that is asked, and runs on the one that is not; when its secret was last used, by the one, is seen
    through the other."""
    pair.of_home.modal("secret", "create", unique, "SAYS=sesame").ok(60)

    def used(client: Client) -> str:
        listed = json.loads(client.modal("secret", "list", "--json").ok(60).text("stdout"))
        return next(row["last_used_at"] for row in listed if row["name"] == unique)

    assert used(pair.of_home) == "-"
    with drained(pair.other, "other"):
        running = pair.of_other.run("spread.py::built", environment={"MARK": unique}).ok(300)
    assert f"mark {unique}" in running.text(), running.text()
    assert used(pair.of_home) == used(pair.of_other) != "-"
    pair.of_home.modal("secret", "delete", "--yes", unique).ok(60)


def test_a_call_outlives_the_node_that_ran_it(pair):
    """The node whose container has the input is killed: the input is run again, and its caller gets the result."""
    with drained(pair.home, "home"):
        running = pair.of_home.run("spread.py::long", "--seconds", "12")
        wait_for("the function to run", lambda: running.find("slow begins"), 120)
        old = pair.other.kill_child()
        pair.other.wait_reborn(old)
        assert "slow ended after 12" in running.ok(200).text()


def test_a_call_outlives_the_node_where_it_is_at_home(pair):
    """The node where calls are at home is killed while a container on the other one works: nothing is lost, and whoever waits
    through the other node gets the result."""
    with drained(pair.home, "home"):
        running = pair.of_other.run("spread.py::long", "--seconds", "15")
        wait_for("the function to run", lambda: running.find("slow begins"), 120)
        old = pair.home.kill_child()
        pair.home.wait_reborn(old)
        assert "slow ended after 15" in running.ok(200).text()


def test_dicts_and_queues_are_one_through_every_node(pair, unique):
    """What is put through one node is read through the other at once, wherever it is at home, also a value that is a blob; who
    waits at one node is woken by a put at the other, in time that no look from time to time would take."""
    program = f"""
import sys, time, modal

queues = [modal.Queue.from_name(f"{unique}-{{n}}", create_if_missing=True) for n in range(8)]
dicts = [modal.Dict.from_name(f"{unique}-{{n}}", create_if_missing=True) for n in range(8)]
if sys.argv[1] == "puts":
    for n, d in enumerate(dicts):
        d["n"], d["large"] = n, bytes([n]) * (3 << 20)
    print("waits", flush=True)
    began = time.time()
    print("got", [q.get(timeout=100) for q in queues], time.time() - began, flush=True)
else:
    seen = [(d["n"], d["large"] == bytes([n]) * (3 << 20)) for n, d in enumerate(dicts)]
    print("seen", seen == [(n, True) for n in range(8)], flush=True)
    for n, q in enumerate(queues):
        time.sleep(0.2)
        q.put(n)
    for n in range(8):
        modal.Dict.objects.delete(f"{unique}-{{n}}")
        modal.Queue.objects.delete(f"{unique}-{{n}}")
"""
    one = pair.of_home.start("-c", program, "puts")
    one.wait_line("^waits", 60)
    assert "seen True" in pair.of_other.start("-c", program, "reads").ok(100).text()
    got = re.search(r"^got (.*) ([0-9.]+)$", one.ok(100).text(), re.M)
    assert got[1] == str(list(range(8)))


def homes(node: Node, app: str) -> dict[str, str]:
    """Returns at which node the calls of each function of an app are at home."""
    found = {}
    for function in node.json("explain", app)["parts"]:
        for sentence in function["says"]:
            if match := re.search(r"at home at node (\w+), with a copy at (?!nowhere)", sentence):
                found[function["name"]] = match.group(1)
    return found


UNDER_LOAD = """
import asyncio
import modal

async def main():
    functions = [modal.Function.from_name(NAME, f"work{n}") for n in range(6)]
    spawned = [await functions[n % 6].spawn.aio(n) for n in range(60)]
    print("calls", *[call.object_id for call in spawned], flush=True)
    done = 0

    async def each(number):
        nonlocal done
        results = []
        async for result in functions[number].map.aio(range(300)):
            results.append(result)
            done += 1
            if done == 300:
                print("under way", flush=True)
        return results == [1000 * number + x for x in range(300)]

    print("mapped", all(await asyncio.gather(*[each(n) for n in range(6)])), flush=True)
    print("spawned", await asyncio.gather(*[call.get.aio(timeout=120) for call in spawned]) == [1000 * (n % 6) + n for n in range(60)])

asyncio.run(main())
"""

# Dicts and queues in as many shards: some are at home at whatever node is lost.
KEPT = """
import modal
dicts = [modal.Dict.from_name(f"{NAME}-{n}", create_if_missing=True) for n in range(12)]
queues = [modal.Queue.from_name(f"{NAME}-{n}", create_if_missing=True) for n in range(12)]
"""
FILLS = """
for n in range(12):
    dicts[n].update({key: [n, key] for key in range(20)})
    del dicts[n][3]
    queues[n].put_many(list(range(10)))
    assert queues[n].get_many(3) == [0, 1, 2]
dicts[0]["large"] = b"x" * (3 << 20)
print("filled", flush=True)
round = 0
while round < 30 or not lost():
    for n in range(12):
        dicts[n]["round"] = round
        queues[n].put(100 + round)
    round += 1
print("rounds", round, flush=True)
"""
READS = """
for n in range(12):
    assert dict(dicts[n].items()) == {**{key: [n, key] for key in range(20) if key != 3}, "round": ROUNDS - 1} | dicts_large(n)
    assert queues[n].get_many(5000) == [*range(3, 10), *range(100, 100 + ROUNDS)] and queues[n].len() == 0
    assert dicts[n].put("round", 0, skip_if_exists=True) is False
    modal.Dict.objects.delete(f"{NAME}-{n}")
    modal.Queue.objects.delete(f"{NAME}-{n}")
print("kept", flush=True)
"""


def test_a_gang_on_two_nodes_meets(pair):
    """Containers of a clustered function that are on two nodes reach each other, and all of them get each input."""
    run = pair.of_other.run("gangs.py::across")
    tasks = run.wait_line("^met ", 200).text.split()[1:]
    nodes = {row["task_id"]: row["node"] for row in pair.home.tasks()}
    assert len({nodes[task] for task in tasks}) == 2, nodes
    run.close()


def test_a_gang_ends_and_begins_again_as_a_whole(pair):
    """A gang on two nodes, of which one is killed: both containers end, and the input, which has no retries, begins anew in two others.
    Then one node is cut off: the other, which hears no leader any more, ends its container by itself, and the input begins once more."""
    wait_until_none("tasks of earlier tests", pair.home.tasks, 60, every=0.2)
    run = pair.of_home.run("gangs.py::lost", "--times", "2", environment={"APART": "1"})

    def works(tries: int) -> list[str]:
        tasks = run.wait_line(f"^try {tries} ", 200).text.split()[2:]
        rows = {row["task_id"]: row["node"] for row in pair.home.tasks()}
        assert len({rows[task] for task in tasks}) == 2, rows
        return tasks

    first = works(0)
    pair.other.wait_reborn(pair.other.kill_child())
    second = works(1)
    assert not set(first) & set(second)
    assert not set(first) & {row["task_id"] for row in pair.home.tasks()}
    here = next(row["task_id"] for row in pair.home.tasks() if row["task_id"] in second and row["node"] == "home")
    sandboxes = lambda count: len(pair.home.sandboxes()) == SANDBOXES_AHEAD + count  # noqa: E731
    wait_for("its container and those that are made ahead", lambda: sandboxes(1), 60)
    frozen = pair.other.child()
    os.kill(frozen, signal.SIGSTOP)
    try:
        wait_for("the end of the container that is cut off", lambda: sandboxes(0), 60)
    finally:
        os.kill(frozen, signal.SIGCONT)
    run.ok(200)
    said = {line.text.split()[0]: line.text.split()[1:] for line in run.lines if line.text.startswith(("ended ", "last "))}
    assert said["ended"] == said["last"] and not set(said["last"]) & {*first, *second}, said
    assert "its node heard no leader for 15 s" in pair.home.shoal("logs", here).stderr


def test_a_lost_machine_costs_nothing_that_was_accepted(pair, unique, tmp_path):
    """Three nodes under load, and one is lost for good that is home of calls, runs containers, leads, and has the client's
    connection, which comes through `shoal connect`: every input has its one result, also when read through another node; what was
    put into dicts and queues is there, what was taken is gone; the functions go on, and the node can be removed."""
    third = Node(tmp_path / "third", config=named("third"))
    third.join(pair.home)
    third_client = Client(third, pair.of_home.token, tmp_path / "client")
    others = {"other": pair.other, "third": third}
    try:
        pair.of_home.deploy("parted.py", unique)
        spread = wait_for("calls to be spread", lambda: others.keys() & set(homes(pair.home, unique).values()), 60, every=0.5)
        name = sorted(spread)[0]
        lost, client = others.pop(name), third_client if name == "other" else pair.of_other
        ((left, kept),) = others.items()
        for _ in range(20):
            leader = wait_for("a leader", lambda: next((line["name"] for line in pair.home.json("node", "list") if line["role"] == "leader"), ""), 30)
            if leader == name:
                break
            leads = {"home": pair.home, left: kept}[leader]
            leads.wait_reborn(leads.kill_child())
        door = Door(lost, pair.home)
        try:
            running = pair.of_home.start("-c", f"NAME = {unique!r}\n{UNDER_LOAD}", environment={"MODAL_SERVER_URL": door.url})
            told = tmp_path / "lost"
            ask = f"import os\nNAME = {unique!r}\nlost = lambda: os.path.exists({str(told)!r})\n{KEPT}"
            fills = client.start("-c", f"{ask}{FILLS}")
            running.wait_line("^under way", 120)
            fills.wait_line("^filled", 120)
            lost.lose()
            said = running.ok(200).text()
            told.touch()
            (rounds,) = re.findall(r"^rounds (.*)$", fills.ok(100).text(), re.M)
        finally:
            door.close()
        assert "mapped True" in said and "spawned True" in said, said
        (calls,) = re.findall(r"^calls (.*)$", said, re.M)
        again = f"import modal; print('again', [modal.FunctionCall.from_id(id).get(timeout=60) for id in {calls.split()[:12]!r}])"
        assert f"again {[1000 * (n % 6) + n for n in range(12)]}" in client.start("-c", again).ok(120).text()
        reads = f"{ask}ROUNDS = {rounds}\ndicts_large = lambda n: {{}} if n else {{'large': b'x' * (3 << 20)}}\n{READS}"
        assert "kept" in pair.of_home.start("-c", reads).ok(100).text()
        pair.home.shoal("node", "remove", name)
        assert name not in {line["name"] for line in pair.home.json("node", "list")}
        client.stop_app(unique)
    finally:
        third_client.close()
        try:
            if third.keeper is not None and "third" in others:
                pair.home.shoal("node", "remove", "third")
                third.stop()
        finally:
            third.stop()
