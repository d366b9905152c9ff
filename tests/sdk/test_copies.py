"""Three nodes: what the cluster names is on two of them, comes back after a loss, and comes from whoever has it whole."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import PROGRAMS, Client, Node, flip, founder, wait_for

pytestmark = pytest.mark.timeout(600)

REPAIR = "[repair]\nevery_seconds = 1\nafter_seconds = 4\n"
BALLAST = 3_000_000


@pytest.fixture(scope="module")
def three(module_folder: Path, seed: Path) -> Iterator[list[Node]]:
    """A cluster of three."""
    configs = {name: f'name = "{name}"\n{REPAIR}' for name in ("one", "two", "three")}
    one = founder(module_folder / "one", seed, configs["one"])
    two, three = (Node(module_folder / name, config=configs[name]) for name in ("two", "three"))
    nodes = [one, two, three]
    try:
        one.start()
        two.join(one)
        three.join(one)
        yield nodes
    finally:
        for node in reversed(nodes):
            node.stop()


@pytest.fixture
def user(three: list[Node], tmp_path: Path) -> Iterator[Client]:
    """A client of the founder."""
    one = Client(three[0], three[0].create_token(), tmp_path / "home")
    yield one
    one.close()


def missing(node: Node) -> int | None:
    """Returns how many copies `shoal status` says are missing; none while it does not know."""
    return node.json("status")["copies_missing"]


def repair(node: Node) -> dict:
    """Runs `shoal store repair --json` and returns what it did."""
    return json.loads(node.shoal("store", "repair", "--json", seconds=120).stdout)


def test_two_nodes_keep_everything_and_the_third_starts_it(three, user, unique):
    """A program is run with an image of its own. By then no copy of it is missing, each node is to keep its part, `store repair` finds
    nothing to do, and a node that has only its part of the image starts it."""
    one, two, _ = three
    user.run("kept.py::main", "--extra", "0", environment={"MARK": unique}).ok(500)
    wait_for("all copies to be there", lambda: missing(two) == 0, 120, every=0.5)
    done = repair(two)
    assert done["copies_missing"] == 0 and len(done["nodes"]) == 3, done
    kept = {line["name"]: line["mine"] for line in done["nodes"]}
    assert sum(kept.values()) == 2 * done["named"] and min(kept.values()) > done["named"] / 2, done
    assert "no copy is missing" in two.shoal("store", "repair").stdout
    one.shoal("node", "drain", "one")
    one.shoal("node", "drain", "two")
    try:
        running = user.run("kept.py::main", "--extra", "0", environment={"MARK": unique}).ok(200)
    finally:
        one.shoal("node", "undrain", "one")
        one.shoal("node", "undrain", "two")
    assert f"size {BALLAST}" in running.text(), running.text()


def test_a_damaged_pack_is_made_up_for(three, full):
    """A pack that is damaged on one node is found and the chunk dropped; the next round brings it again from the others."""
    if not full:
        pytest.skip("reads the whole store of a node twice: with --full")
    _, two, last = three
    wait_for("all copies to be there", lambda: missing(two) == 0, 120, every=0.5)
    pack = max((two.data / "chunks" / "packs").glob("*.pack"), key=lambda pack: pack.stat().st_size)
    flip(pack, pack.stat().st_size // 2)
    checked = two.shoal("store", "check", "--json", check=False, seconds=240)
    report = json.loads(checked.stdout)
    assert checked.returncode == 1 and len(report["dropped"]) + len(report["repaired"]) == 1, report
    assert repair(last)["copies_missing"] == 0
    assert json.loads(two.shoal("store", "check", "--json", seconds=240).stdout)["whole"]


def test_a_lost_node_is_made_up_for(three, user, unique):
    """A node is gone: copies are missing and `shoal status` says so, until the others have made up for it. What is deployed while it is
    away is on both others, whole, and so are arguments too long for a message, which nothing names but calls. When it is back, it is
    brought an image whole, and then all that it is to keep."""
    one, two, last = three
    wait_for("all copies to be there", lambda: missing(one) == 0, 120, every=0.5)
    one.shoal("node", "drain", "three")
    # Each is on the node that it came to and on one of the others. A node that runs its call has it too: that is the first.
    one.shoal("node", "drain", "two")
    user.run("kept.py::large", environment={"MARK": unique}).ok(300)
    one.shoal("node", "undrain", "two")
    last.stop()
    away = wait_for("copies to be missing", lambda: missing(one), 60, every=0.2)
    assert away > 100, away
    user.modal("deploy", "--name", unique, str(PROGRAMS / "kept.py"), environment={"MARK": unique}).ok(200)
    wait_for("the others to make up for it", lambda: missing(one) == 0, 120, every=0.5)
    given = lambda: any("gave blobs" in node.log.read_text(errors="replace") for node in (one, two))  # noqa: E731
    wait_for("arguments of calls to be given to the other node", given, 60, every=0.5)
    images = {image["image_id"]: image for image in json.loads(two.shoal("image", "ls", "--json").stdout)}
    (image,) = (id for id, image in images.items() if any(f"{use['app']}.{use['function']}" == f"{unique}.size" for use in image["used_by"]))
    assert set(images[image]["whole_on"]) == {"one", "two"}, images[image]
    last.start()
    warmed = json.loads(one.shoal("image", "warm", image, "--node", "three", "--json", seconds=120).stdout)
    assert warmed["whole"] and warmed["chunks"] > 0 and warmed["lacking"] == 0, warmed
    (again,) = (line for line in json.loads(last.shoal("image", "ls", "--json").stdout) if line["image_id"] == image)
    assert set(again["whole_on"]) == {"one", "two", "three"}, again
    refused = one.shoal("image", "warm", image, "--node", "nobody", check=False)
    assert refused.returncode == 1 and 'no node has the id or name "nobody"' in refused.stderr, refused.stderr
    wait_for("it to bring what it is to keep", lambda: missing(two) == 0, 120, every=0.5)
    one.shoal("node", "undrain", "three")
    user.stop_app(unique)
