"""What is on disk: whole, as small as it may be, and nothing of it gone that anybody needs."""

import json
import random
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import PROGRAMS, Client, Node, flip, founder, wait_for, wait_until_none

pytestmark = pytest.mark.timeout(900)

# How long the node of these tests keeps what nothing names yet, in seconds: longer than a step of a build or an upload takes.
KEEP_SECONDS = 25
BALLAST = 3_000_000
CONFIG = f"[calls]\ninputs_waiting_max = 50\n[disk]\nchunks_keep_seconds = {KEEP_SECONDS}\nlogs_bytes = 1048576\n"


@pytest.fixture(scope="module")
def small_node(module_folder: Path, seed: Path) -> Iterator[Node]:
    """A node of its own that keeps nothing for long, few lines of logs, and takes few inputs at once."""
    node = founder(module_folder / "data", seed, CONFIG)
    try:
        node.start()
        yield node
    finally:
        node.stop()


@pytest.fixture
def user(small_node: Node, tmp_path: Path) -> Iterator[Client]:
    """A client of that node."""
    one = Client(small_node, small_node.create_token(), tmp_path / "home")
    yield one
    one.close()


@contextmanager
def configured(node: Node, more: str) -> Iterator[None]:
    """Starts the node with more lines in `[disk]` of its configuration, and with its own afterwards."""

    def start_with(config: str) -> None:
        node.stop()
        node.config = config
        node.start()

    start_with(CONFIG + more)
    try:
        yield
    finally:
        start_with(CONFIG)


def check(node: Node, whole: bool = True) -> dict:
    """Runs `shoal store check --json` and returns its report."""
    done = node.shoal("store", "check", "--json", check=False, seconds=600)
    report = json.loads(done.stdout)
    assert report["whole"] == whole and done.returncode == (0 if whole else 1), done.stdout + done.stderr
    return report


def collect(node: Node, *arguments: str) -> dict:
    """Runs `shoal store gc --json` and returns what it did."""
    return json.loads(node.shoal("store", "gc", "--json", *arguments, seconds=300).stdout)


def deploy(user: Client, name: str) -> None:
    """Deploys the program under a name, with an image of its own."""
    user.modal("deploy", "--name", name, str(PROGRAMS / "kept.py"), environment={"MARK": name}).ok(300)


def images(node: Node) -> dict[str, dict]:
    """Returns what `shoal image ls` shows, by id."""
    return {image["image_id"]: image for image in json.loads(node.shoal("image", "ls", "--json").stdout)}


def needed_by(node: Node, app: str, *functions: str) -> set[str]:
    """Returns the images that an app needs, for some of its functions or for all."""

    def needs(use: dict) -> bool:
        return use["app"] == app and (not functions or use["function"] in functions)

    return {id for id, image in images(node).items() if any(needs(use) for use in image["used_by"])}


def run(user: Client, mark: str, extra: int = 0) -> None:
    """Runs the program with an image of its own, and sees that it is whole."""
    running = user.run("kept.py::main", "--extra", str(extra), environment={"MARK": mark}).ok(300)
    assert f"size {BALLAST + extra}" in running.text()


def find(node: Node, data: bytes) -> tuple[Path, int]:
    """Returns the pack in which bytes lie that do not compress, and where."""
    for pack in sorted((node.data / "chunks" / "packs").glob("*.pack")):
        if (at := pack.read_bytes().find(data[:64])) >= 0:
            return pack, at
    raise AssertionError("the bytes are in no pack")


def let_promises_end(node: Node, user: Client) -> None:
    """Waits until what was put before is kept for no other reason than that it is named; the base image is used after that."""
    wait_until_none("tasks", node.tasks, 60, every=0.2)
    time.sleep(KEEP_SECONDS * 1.1)  # The time that promises last is what is waited for.
    user.run("kept.py::base").ok(300)


def test_what_was_run_is_whole_and_listed_with_its_size(user, small_node, unique):
    """After a run every chunk is proven, everything named is complete, and the image is listed with size and last use."""
    run(user, unique, extra=3 << 20)
    report = check(small_node)
    assert report["chunks"] > 100 and report["named"] > 3 and report["incomplete"] == []
    large = [image for image in images(small_node).values() if image["size_bytes"] > BALLAST and image["state"] == "built"]
    assert large and all(image["entries"] > 1000 and image["last_used_ms"] for image in large)


def test_status_tells_how_much_of_images_was_read(user, small_node, unique):
    """A file that nobody opens costs no read, however often its image runs; one that is read costs its size, once."""
    deploy(user, unique)

    def reads_of(function: str) -> int:
        before = small_node.json("status")["files_read_bytes"]
        call = user.start("-c", f"import modal; print('bytes', modal.Function.from_name({unique!r}, {function!r}).remote())")
        assert f"bytes {BALLAST}" in call.ok(200).text()
        return small_node.json("status")["files_read_bytes"] - before

    reads_of("size")  # The first container of an image also reads its Python.
    assert reads_of("size") < BALLAST
    first, second = reads_of("read"), reads_of("read")
    assert first >= BALLAST, f"{first} bytes were counted for a file of {BALLAST}"
    assert second < BALLAST, f"{second} bytes were read of a file that the kernel still has"
    assert "of images' files" in small_node.shoal("status").stdout
    user.stop_app(unique)


def test_collecting_gives_space_back_and_what_is_needed_stays(user, small_node, unique):
    """A deployed app's image outlives a collection with no budget at all, and so does a value of a dict that is too long for a record; an
    unnamed image goes, as does the value of a dict that was deleted, their space comes back, and the next run builds it again."""
    name = f"{unique}-kept"
    deploy(user, name)
    put = "modal.Dict.from_name({!r}, create_if_missing=True).put('key', os.urandom(3_000_000))"
    lines = ["import modal, os", put.format(unique), put.format(f"{unique}-gone"), f"modal.Dict.objects.delete('{unique}-gone')"]
    user.start("-c", "; ".join(lines)).ok(60)
    run(user, unique)
    needed = needed_by(small_node, name)
    assert len(needed) == 2, "its own image and the base one"
    let_promises_end(small_node, user)
    there = images(small_node)
    would = collect(small_node, "--dry-run", "--budget", "0")
    assert would["dry_run"] and would["images"] and images(small_node).keys() == there.keys(), "a dry run changes nothing"
    done = collect(small_node, "--budget", "0")
    assert set(done["images"]) == there.keys() - images(small_node).keys()
    assert done["chunks"] > 0 and done["bytes"] > BALLAST and done["blobs"] == 1, done
    assert "long 3000000" in user.start("-c", f"import modal; print('long', len(modal.Dict.from_name({unique!r})['key']))").ok(60).text()
    assert needed <= images(small_node).keys(), "the deployed app's image is gone"
    check(small_node)
    call = user.start("-c", f"import modal; print('size', modal.Function.from_name({name!r}, 'size').remote())").ok(200)
    assert f"size {BALLAST}" in call.text()
    run(user, unique)
    check(small_node)
    user.stop_app(name)


def test_an_image_that_is_needed_is_not_removed(user, small_node, unique):
    """`shoal image rm` and the client's `image_delete` say who needs an image; once the app is stopped they take it."""
    deploy(user, unique)
    (image,) = needed_by(small_node, unique, "size")
    refused = small_node.shoal("image", "rm", image, check=False)
    assert refused.returncode == 1
    assert unique in refused.stderr and "read, size of app" in refused.stderr and "stop the app first" in refused.stderr, refused.stderr
    delete = f"from modal.experimental import image_delete; image_delete({image!r})"
    by_client = user.start("-c", delete)
    assert by_client.wait(60) != 0 and unique in by_client.text(), by_client.text()
    user.stop_app(unique)
    user.start("-c", delete).ok(60)
    assert image not in images(small_node)
    absent = small_node.shoal("image", "rm", image, check=False)
    assert absent.returncode == 1 and image in absent.stderr and "`shoal image list` shows them" in absent.stderr
    check(small_node)


def test_damage_is_found_told_and_mended_by_building_again(user, small_node, unique):
    """A byte that flips in a pack: the check names the chunk, ends with 1 and says what lacks it; the next check tells only
    what is incomplete; a collection forgets the broken build step, and the next run is whole."""
    collect(small_node)  # Whatever an interrupted run has broken.
    run(user, unique)
    wait_until_none("tasks", small_node.tasks, 60, every=0.2)
    pack, at = find(small_node, random.Random(unique).randbytes(BALLAST)[1 << 20 :])
    flip(pack, at + 1000)
    report = check(small_node, whole=False)
    (damaged,) = report["dropped"]
    assert report["repaired"] == [] and damaged["pack"] == str(pack) and damaged["offset"] < at + 1000, report
    assert {lacks["first"] for lacks in report["incomplete"]} == {damaged["digest"]}, report
    assert check(small_node, whole=False)["dropped"] == []
    assert collect(small_node)["layers"] > 0
    run(user, unique)
    check(small_node)


def test_a_node_that_does_not_run_is_checked_as_it_lies(user, small_node, unique):
    """`shoal store check` of a stopped node reads its folder: whole; a damaged chunk is told with what lacks it, and left, so that the
    node is whole again once the disk is; a folder that is no node's is refused with a sentence."""
    deploy(user, unique)
    small_node.stop()
    try:
        table = small_node.shoal("store", "check", seconds=600).stdout
        assert "no node runs" in table and "everything is whole" in table
        pack, at = find(small_node, random.Random(unique).randbytes(BALLAST)[1 << 20 :])
        flip(pack, at + 1000)
        report = check(small_node, whole=False)
        (damaged,) = report["lost"]
        assert report["offline"] and report["dropped"] == [] and report["named"] > 3, report
        assert {lacks["first"] for lacks in report["incomplete"]} == {damaged["digest"]}, report
        flip(pack, at + 1000)
        command = [str(small_node.binary), "store", "check", "--data", str(small_node.data.parent)]
        nowhere = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    finally:
        small_node.start()
    assert nowhere.returncode == 1 and "not the data folder of a node" in nowhere.stderr
    assert not check(small_node)["offline"]


def test_what_of_logs_is_dropped_is_told(user, small_node, unique):
    """A function prints more than the node keeps: the newest lines are there, and a line says how many were dropped, to
    `modal app logs` and to `shoal logs`, with a number of lines or without."""
    running = user.run("kept.py::chat", "--n", "2000").ok(300)
    app_id = running.app_id()

    def newest() -> list[str]:
        return small_node.shoal("logs", app_id, "--tail", "100000").stdout.splitlines()

    lines = wait_for("the last line", lambda: (found := newest()) and found[-1].startswith("line 001999") and found, 30)
    assert not lines[0].startswith("line 000000")
    for arguments in (["--tail", "100000"], []):
        said = small_node.shoal("logs", app_id, *arguments).stderr
        dropped = re.search(r"\[(\d+) older lines of this app were dropped: a node keeps 1 MiB of logs, and none for more than 30 days\]", said)
        assert dropped, said[:500]
        assert int(dropped.group(1)) + len(lines) >= 2_000
    assert any("older lines of this app were dropped" in line for line in user.logs(app_id, "--tail", "20000"))


def test_of_containers_that_fill_the_disk_together_the_largest_ends(user, small_node):
    """While containers take more of the disk than `disk.overlays_bytes`, the one that takes the most is killed: who waits for it, its
    log and `shoal explain` say why, a smaller one beside it goes on, and there is room for the next."""
    user.run("kept.py::base").ok(300)  # What is built then is not built in the little room there is later.
    with configured(small_node, f"overlays_bytes = {200 << 20}\n"):
        running = user.run("fillers.py", "--small", "30", "--large", "400", "--seconds", "12").ok(240)
        out, app = running.text("stdout"), running.app_id()
        why = re.search(r"large failed: the container was killed: it took (\d+) MiB of the node's disk, the most of all", out)
        assert why and int(why.group(1)) > 150 and "disk.overlays_bytes" in out, out
        assert "small 30" in out and "again 30" in out, out
        said = [json.loads(line) for line in small_node.shoal("logs", app, "--stream", "system", "--json").stdout.splitlines()]
        (killed,) = [line for line in said if "killed: it took" in line["data"]]
        told = small_node.json("explain", killed["task_id"])
        assert any("killed: it took" in says and "200 MiB is what they may take" in says for says in told["says"]), told
        node_id = small_node.json("status")["node_id"]
        assert any("200 MiB is what they may take" in says for says in small_node.json("explain", node_id)["says"])


def test_a_build_that_fills_the_disk_is_told_so(user, small_node, tmp_path, unique):
    """A build whose container takes the most of what containers may is killed; its client reads why and what to do."""
    user.run("kept.py::base").ok(300)
    (tmp_path / "program.py").write_text(f"""
import modal
app = modal.App(image=modal.Image.debian_slim().run_commands("head -c 400M /dev/urandom > /{unique}; sleep 12"))
@app.function()
def nothing():
    pass
""")
    with configured(small_node, f"overlays_bytes = {200 << 20}\n"):
        running = user.run(tmp_path / "program.py")
        assert running.wait(240) != 0
        assert "the build was killed: it took" in running.text() and "disk.overlays_bytes" in running.text(), running.text()


def test_stopped_apps_are_remembered_for_as_long_as_is_said(user, small_node, unique):
    """`disk.stopped_apps_days`: an app that was stopped is listed, with 0 no more after a minute; what it printed is kept all the same."""
    app = user.run("kept.py::chat", "--n", "3").ok(300).app_id()

    def listed() -> list[str]:
        return [row["app_id"] for row in small_node.json("app", "list", "--all")]

    assert app in listed()
    with configured(small_node, "stopped_apps_days = 0\n"):
        wait_for("the stopped app to be forgotten", lambda: app not in listed(), 90, every=1)
        assert "line 000002" in small_node.shoal("logs", app).stdout


def test_a_client_that_puts_too_much_is_held_back_and_finishes(small_node, user):
    """A node where few inputs may wait: a map that is spawned in pieces of hundreds gets through all the same, piece by piece."""
    running = user.run("scale.py::put_much", "--inputs", "540").ok(180)
    assert "540 results, right: True" in running.text(), running.text()
