"""The power goes while a node is under load, at any moment: what its clients were told holds on the next start.

accepted_survives  a call that was accepted has its right result in the end
one_outcome        a result that was told is the result
kept               secrets, tokens, deploys and stops are as they were told; the store has all that is named
"""

import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness import PROGRAMS, Client, Node, copy_folder
from power import Recording, Traced

# Fifty in a full run: as many as are promised.
CUTS, CUTS_FULL = 5, 50
LOAD_SECONDS = 12
# Snapshots of Pythons are left out of the replay, and making them takes half a minute of each cut.
PLAIN = {"SHOAL_CONTAINERS__ZYGOTES": "false"}
# How long a look at all facts, or at all of the store, may take, in seconds.
CHECK_SECONDS = 300

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not here: apt-get install strace"),
]


def deploy(client: Client, name: str, version: int) -> dict:
    """Deploys a version with an image of its own; returns what is known from then on."""
    client.modal("deploy", "--name", name, str(PROGRAMS / "power_app.py"), environment={"POWER_VERSION": str(version)}).ok(600)
    return {"at": time.time_ns() // 1000, "kind": "deployed", "app": name, "version": version}


def put_under_load(node: Node, home: Path, name: str) -> list[dict]:
    """Lets clients do what clients do, and returns what they were told."""
    client = Client(node, node.create_token(), home)
    try:
        load = client.start(str(PROGRAMS / "power_load.py"), name, str(LOAD_SECONDS), name)
        token = node.create_token()
        facts = [{"at": time.time_ns() // 1000, "kind": "token", "id": token.id, "secret": token.secret}]
        facts.append(deploy(client, f"{name}-gone", 1))
        facts.append(deploy(client, name, 2))
        client.modal("app", "stop", "--yes", f"{name}-gone").ok(60)
        facts.append({"at": time.time_ns() // 1000, "kind": "stopped", "app": f"{name}-gone"})
        token = node.create_token()
        facts.append({"at": time.time_ns() // 1000, "kind": "token", "id": token.id, "secret": token.secret})
        facts.append(deploy(client, name, 3))
        load.ok(LOAD_SECONDS + 180)
        return facts + [json.loads(line) for line in load.text("stdout").splitlines()]
    finally:
        client.close()


@pytest.fixture(scope="module")
def recording(node: Node, token, tmp_path_factory: pytest.TempPathFactory, request) -> Iterator[Recording]:
    """A node's run under load, traced. It begins with a copy of the shared node's folder, where the images are built.

    After a failure what it takes to make the same power cuts again is kept.
    """
    name = f"power-{os.urandom(4).hex()}"
    shared = Client(node, token, tmp_path_factory.mktemp("power") / "home")
    folder = Path(tempfile.mkdtemp(prefix="power-", dir=node.data.parent))
    before, data = folder / "before", folder / "data"
    try:
        first = deploy(shared, name, 1) | {"at": 0}
        shared.start("-c", f"import modal; print(modal.Function.from_name({name!r}, 'work').remote(2))").ok(300)
        node.stop()
        try:
            copy_folder(node.data, before)
        finally:
            node.start()
        copy_folder(before, data)
        traced = Traced(data, folder / "trace", PLAIN)
        try:
            traced.start()
            facts = put_under_load(traced, shared.home, name)
        finally:
            traced.stop()
        yield Recording(folder / "trace", data, before, [first, *sorted(facts, key=lambda fact: fact["at"])])
    finally:
        shared.stop_app(name)
        shared.close()
        if request.session.testsfailed:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def lies(facts: list[dict]) -> list[dict]:
    """Returns facts like these that are not true, of each kind that there is."""
    last = {fact["kind"]: fact for fact in facts}
    false = {
        "spawned": {"call": "fc-00000000000000000000000000"},
        "result": {"outcome": [0, "", "", ""]},
        "secret": {"value": "another"},
        "token": {"secret": "as-another"},
        "deployed": {"version": 99},
        "stopped": {"app": facts[0]["app"]},
    }
    return [fact | false[kind] for kind, fact in last.items()]


def problems(recording: Recording, facts: list[dict], home: Path) -> list[dict]:
    """Starts a node on the folder and returns which facts do not hold, in words. Lies among them must be seen through."""
    untrue = lies(facts)
    node = Node(recording.folder, environment=PLAIN)
    user = None
    try:
        node.start()
        user = Client(node, node.create_token(), home)
        told = home / "facts"
        told.write_text("".join(f"{json.dumps(fact)}\n" for fact in facts + untrue))
        app = facts[0]["app"]
        # Meanwhile: the store may be large, as it is the shared node's.
        whole = ThreadPoolExecutor().submit(node.shoal, "store", "check", seconds=CHECK_SECONDS)
        found = user.start(str(PROGRAMS / "power_check.py"), app, str(told)).ok(CHECK_SECONDS).text("stdout")
        whole.result()
        found = [json.loads(line) for line in found.splitlines()]
        assert [lie for lie in untrue if lie not in [one["fact"] for one in found]] == [], f"the look at facts is blind; it found {found}"
        return [one for one in found if one["fact"] not in untrue]
    finally:
        if user is not None:
            user.close()
        node.stop()


def test_what_was_told_survives_a_power_cut(recording, tmp_path, full):
    """Power cuts at random moments, half of them right after somebody was told something: accepted_survives, one_outcome, kept."""
    seed = int(os.environ.get("POWER_CUT_SEED") or random.randrange(1 << 32))
    count = CUTS_FULL if full else CUTS
    kinds = {kind: sum(fact["kind"] == kind for fact in recording.facts) for kind in {fact["kind"] for fact in recording.facts}}
    print(f"POWER_CUT_SEED={seed}; told: {kinds}")
    with recording.cuts(count, seed) as cuts:
        for cut, facts in cuts:
            found = problems(recording, facts, tmp_path)
            print(f"{cut}: {len(facts)} facts, {len(found)} do not hold")
            assert found == [], f"POWER_CUT_SEED={seed}, {cut}"


def test_without_a_sync_it_shows(recording, tmp_path):
    """The same record without the fdatasyncs of the log of calls: the node does not start, or has forgotten what it told."""
    with recording.cuts(1, 1, "--last", "--without", "fdatasync:calls/*.segment") as cuts:
        for cut, facts in cuts:
            assert len(facts) == len(recording.facts), "at the end all is due"
            try:
                found = problems(recording, facts, tmp_path)
            except AssertionError as error:
                assert "the keeper ended" in str(error), error
                print(f"{cut}: {error}")
            else:
                print(f"{cut}: {len(found)} of {len(facts)} facts do not hold; the first: {found[:1]}")
                assert found, "the syncs can be left out, or the rig is blind"
