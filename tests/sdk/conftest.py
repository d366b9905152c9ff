"""The fixtures of the SDK tests. harness.py has what they are made of.

    tests/sdk/.venv/bin/pytest tests/sdk                  one pass
    tests/sdk/.venv/bin/pytest tests/sdk -m 'not slow'    what needs no packages and little time
    tests/sdk/.venv/bin/pytest tests/sdk --full           each repetition as often as the promise says

SHOAL_BIN             the binary under test; else the newest build of this checkout
SHOAL_CLIENT_PYTHON   the Python that runs client processes; else the one that runs pytest
SHOAL_TEST_ZYGOTES    off: the node starts every container the plain way
SHOAL_TEST_DATA       a data folder that is kept between runs, so that images are built once
"""

import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Before the first `import modal`: this process is a client too and must not read the user's file.
_PRIVATE = Path(tempfile.mkdtemp(prefix="shoal-sdk-"))
os.environ["MODAL_CONFIG_PATH"] = str(_PRIVATE / "modal.toml")
for _name in ("MODAL_PROFILE", "MODAL_ENVIRONMENT", "MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET", "MODAL_SERVER_URL"):
    os.environ.pop(_name, None)

# A run that a script put into the background ignores SIGINT, and so would every client that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

from harness import (  # noqa: E402
    PROGRAMS,
    SANDBOXES_AHEAD,
    Client,
    Machine,
    Node,
    Running,
    Token,
    copy_folder,
    wait_for,
    wait_until_none,
    worker_folder,
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="repeat what must hold each time as often as promised")


def pytest_unconfigure() -> None:
    shutil.rmtree(_PRIVATE, ignore_errors=True)


@pytest.fixture(scope="session")
def full(pytestconfig: pytest.Config) -> bool:
    """Whether this is a full run (--full or SHOAL_TEST_FULL=1)."""
    return bool(pytestconfig.getoption("--full") or os.environ.get("SHOAL_TEST_FULL") == "1")


@pytest.fixture(scope="session")
def node() -> Iterator[Node]:
    """The node that all tests share, or all tests of one of the processes that they are spread over."""
    kept = os.environ.get("SHOAL_TEST_DATA")
    folder = worker_folder(Path(kept)) if kept else Path(tempfile.mkdtemp(prefix="shoal-node-"))
    folder.mkdir(parents=True, exist_ok=True)
    plain = {"SHOAL_CONTAINERS__ZYGOTES": "false"} if os.environ.get("SHOAL_TEST_ZYGOTES") == "off" else {}
    seed = folder / "seed"
    if not seed.exists():
        sow(seed)
    if not (folder / "data").exists():
        copy_folder(seed, folder / "data")
    one = Node(folder / "data", environment=plain)
    try:
        one.start()
        yield one
    finally:
        one.stop()
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)
    left = Machine.now(one).since(Machine.nothing())
    assert not left, f"the node stopped and left behind: {left}"


def sow(seed: Path) -> None:
    """Makes a data folder in which the image of the plainest program is built; all of it or none."""
    new = Node(seed.with_name("seed.new"))
    shutil.rmtree(new.data, ignore_errors=True)
    try:
        new.start()
        user = Client(new, new.create_token(), seed.with_name("home"))
        user.modal("run", f"{PROGRAMS / 'plain.py'}::increment", "--x", "1").ok(600)
        user.close()
    finally:
        new.stop()
    new.data.rename(seed)


@pytest.fixture(scope="session")
def seed(node: Node) -> Path:
    """A data folder in which the image of the plainest program is built. Nodes of a test's own begin with a copy of it."""
    return node.data.parent / "seed"


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder for what all tests of a file share. It stays after a failure."""
    name, before = request.module.__name__.rsplit(".", 1)[-1].removeprefix("test_"), request.session.testsfailed
    folder = tmp_path_factory.mktemp(name)
    yield folder
    if request.session.testsfailed == before:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def token(node: Node) -> Token:
    """A token of the shared node; this process speaks with it too."""
    made = node.create_token()
    os.environ["MODAL_SERVER_URL"] = node.url
    os.environ["MODAL_TOKEN_ID"] = made.id
    os.environ["MODAL_TOKEN_SECRET"] = made.secret
    return made


@pytest.fixture
def client(node: Node, token: Token, tmp_path: Path) -> Iterator[Client]:
    """Client processes with a home of their own."""
    one = Client(node, token, tmp_path / "home")
    yield one
    one.close()


@pytest.fixture
def modal_run(client: Client) -> Callable[..., Running]:
    """`modal run` of a program in a process of its own: modal_run("output.py", "--lines", "10")."""
    return client.run


@pytest.fixture
def shoal(node: Node):
    """The `shoal` command against the shared node: shoal("task", "list")."""
    return node.shoal


@pytest.fixture
def sdk(token: Token):
    """The `modal` module in this process, connected to the shared node."""
    import modal

    return modal


@pytest.fixture
def unique() -> str:
    """A name that no other test and no earlier run has used."""
    return f"t-{uuid.uuid4().hex[:10]}"


@pytest.fixture
def deployed(client: Client) -> Iterator[Callable[[str, str], str]]:
    """Deploys programs and stops them at the end: deployed("functions.py", unique)."""
    names: list[str] = []

    def deploy(program: str, name: str) -> str:
        names.append(name)
        client.deploy(program, name)
        return name

    yield deploy
    for name in names:
        client.stop_app(name)


@pytest.fixture
def no_leftovers(node: Node) -> Iterator[None]:
    """Fails a test after which the machine has more mounts, namespaces, links or cgroups of containers.

    The node keeps slots ready for containers to come, so counts are compared, once no task is left.
    """

    wait_until_none("tasks of earlier tests", node.tasks, 60, every=0.2)
    wait_for("the sandboxes that the node makes ahead", lambda: len(node.sandboxes()) == SANDBOXES_AHEAD, 60, every=0.2)
    before = Machine.now(node)
    yield
    wait_until_none("tasks of the test", node.tasks, 60, every=0.2)
    # The node may be making something ahead, which takes its time on a busy machine.
    wait_until_none("leftovers on the machine", lambda: Machine.now(node).more_than(before), 60, every=0.2)
