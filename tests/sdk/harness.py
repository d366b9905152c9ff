"""What the SDK tests stand on: a real node, real client processes, and a look at the machine.

`Node` runs the `shoal` binary with a data folder and ports of its own. `Client` runs programs
under the pinned client in processes of their own and stamps each line with the moment it came.
`Machine` is what a container could leave behind: mounts, namespaces, links, cgroups, sandboxes.

Everything started here is ended by its process id. Waits are on conditions with a deadline,
and one that runs out says what it waited for.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
PROGRAMS = HERE / "programs"

# How long a node may take from its start to its first answer, in seconds. A start on a data
# folder with much in it replays logs and cleans up what a former process left.
NODE_START_SECONDS = 90
# How many sandboxes a node keeps for containers to come.
SANDBOXES_AHEAD = 2
# How long a node may take to stop all its containers and exit, in seconds.
NODE_STOP_SECONDS = 60
# How long after the end of an app the last of its containers may live on a busy machine, in seconds. One that nobody ends stays for
# the minute of its scaledown window.
CONTAINER_GONE_SECONDS = 20.0


def shoal_binary() -> Path:
    """Returns the binary under test: $SHOAL_BIN, else the newest build of this checkout."""
    if named := os.environ.get("SHOAL_BIN"):
        return Path(named).resolve()
    target = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))
    built = [path for kind in ("release", "debug") if (path := target / kind / "shoal").exists()]
    if not built:
        raise FileNotFoundError(f"no shoal binary under {target}: run `cargo build --bin shoal` or set SHOAL_BIN")
    return max(built, key=lambda path: path.stat().st_mtime)


def client_python() -> Path:
    """Returns the Python that has the pinned client: $SHOAL_CLIENT_PYTHON, else this one."""
    return Path(os.environ.get("SHOAL_CLIENT_PYTHON", sys.executable))


def wait_for(
    what: str, check: Callable[[], Any], seconds: float, every: float = 0.05, besides: Callable[[], Any] | None = None
) -> Any:
    """Returns the first true answer of `check`; after `seconds` fails naming `what`, the last answer and what `besides` shows."""
    end = time.monotonic() + seconds
    while True:
        answer = check()
        if answer:
            return answer
        if time.monotonic() >= end:
            shown = f"; besides: {besides()!r}" if besides else ""
            raise AssertionError(f"waited {seconds:g} s for {what}; last answer: {answer!r}{shown}")
        time.sleep(every)


def wait_until_none(what: str, look: Callable[[], Any], seconds: float, every: float = 0.05) -> None:
    """Waits until `look` finds nothing; after `seconds` fails naming `what` and what there is."""
    found: Any = None

    def gone() -> bool:
        nonlocal found
        found = look()
        return not found

    try:
        wait_for(f"no {what}", gone, seconds, every)
    except AssertionError:
        raise AssertionError(f"waited {seconds:g} s for no {what}; there is {found!r}") from None


def worker() -> int:
    """Returns which of the processes this is that the tests are spread over; 0 if there is only one."""
    return int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


def worker_folder(kept: Path) -> Path:
    """Returns the part of a folder that this process of the tests has for itself."""
    return kept / f"worker-{worker()}" if worker() else kept


def free_ports(count: int) -> list[int]:
    """Returns ports of 127.0.0.1 that nobody listens on at this moment.

    They are never ones that the kernel gives to outgoing connections, nor ones of another process of the tests, and each is
    given once: so they are still free when they are used.
    """
    found: list[int] = []
    while len(found) < count:
        port = next(_PORTS)
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            found.append(port)
    return found


def _ports() -> Iterator[int]:
    first = 16000 + 4000 * worker()
    return itertools.islice(itertools.cycle(range(first, first + 4000)), os.getpid() % 4000, None)


_PORTS = _ports()


def copy_folder(source: Path, target: Path) -> None:
    """Copies a data folder of which no node has hold; holes stay holes."""
    subprocess.run(["cp", "-a", "--sparse=always", str(source), str(target)], check=True, timeout=600)


def founder(folder: Path, seed: Path, config: str) -> Node:
    """Returns a node, not started yet, that has the image of the plainest program."""
    copy_folder(seed, folder)
    return Node(folder, config=config)


def children(pid: int) -> list[int]:
    """Returns the direct children of a process, by all its threads; empty when it is gone."""
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found.extend(int(word) for word in file.read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def descendants(pid: int) -> list[int]:
    """Returns all processes below a process, parents before children."""
    found: list[int] = []
    for child in children(pid):
        found.append(child)
        found.extend(descendants(child))
    return found


def command_line(pid: int) -> list[str]:
    """Returns the arguments of a process; empty when it is gone or a kernel thread."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


@dataclass(frozen=True)
class Token:
    """A credential that clients send with every call."""

    id: str
    secret: str


@dataclass(frozen=True)
class Machine:
    """What containers may leave behind on a machine. `since` names what is new."""

    mounts: frozenset[str]
    namespaces: frozenset[str]
    links: frozenset[str]
    cgroups: frozenset[str]

    @staticmethod
    def now(node: Node) -> Machine:
        """Looks for what one node made; others on the machine don't count."""
        mounts = (line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
        namespaces = Path("/run/netns")
        names = os.listdir(namespaces) if namespaces.is_dir() else []
        return Machine(
            mounts=frozenset(
                mount for mount in mounts
                if mount.startswith((f"{node.data}/", f"/run/shoal/{node.tag}/"))
                # runsc's own, one for a node, from its first container on.
                and not (node.keeper is not None and mount.endswith("/null-netns"))
            ),
            namespaces=frozenset(name for name in names if node.tag in name),
            links=frozenset(name for name in os.listdir("/sys/class/net") if node.tag in name),
            cgroups=frozenset(folder for folder, _, _ in os.walk("/sys/fs/cgroup") if f"shoal-{node.tag}" in folder),
        )

    @staticmethod
    def nothing() -> Machine:
        """A machine without a trace of a node."""
        return Machine(frozenset(), frozenset(), frozenset(), frozenset())

    def since(self, before: Machine) -> dict[str, list[str]]:
        """Returns what is here and was not `before`, by kind; empty when nothing is."""
        new = {name: sorted(getattr(self, name) - getattr(before, name)) for name in self.__dataclass_fields__}
        return {name: values for name, values in new.items() if values}

    def more_than(self, before: Machine) -> dict[str, list[str]]:
        """Returns what is here by kind, of those kinds of which there is more than `before`; empty when there is none.

        A node keeps slots ready for containers to come, each with names of its own, so numbers are compared.
        """
        kinds = {name: (getattr(self, name), getattr(before, name)) for name in self.__dataclass_fields__}
        return {name: sorted(now - old) for name, (now, old) in kinds.items() if len(now) > len(old)}


class Door:
    """`shoal connect`: leads clients to whichever of some nodes is there, by mutual TLS or, on request, plainly."""

    def __init__(self, *nodes: Node, plain: bool = False):
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        made = nodes[0].json("token", "create")
        self.token_id: str = made["token_id"]
        environment = outer_environment()
        if not plain:
            environment["SHOAL_CONNECT_TOKEN"] = made["connect"].split()[-1]
        self.log = nodes[0].log.with_name(f"door-{port}.log")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(shoal_binary()), "connect", ",".join(node.url for node in nodes), "--listen", f"127.0.0.1:{port}"],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=environment,
            )  # fmt: skip
        assert self.process.stdout is not None
        assert self.url.encode() in self.process.stdout.readline()

    def close(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)


class Node:
    """One `shoal start` with its keeper, its data folder and its ports."""

    def __init__(self, data: Path, config: str | None = None, environment: dict[str, str] | None = None):
        self.data = data
        self.binary = shoal_binary()
        self.api_port, self.web_port = free_ports(2)
        self.log = data.parent / f"{data.name}.log"
        self.config = config
        self.environment = environment or {}
        self.keeper: subprocess.Popen[bytes] | None = None
        # What the names of all that it makes on the machine carry; known once it runs.
        self.tag = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.api_port}"

    def healthy(self) -> bool:
        """Says what a load balancer is told: whether clients should come to this node."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=10) as answer:
                return answer.status == 200
        except urllib.error.HTTPError as error:
            assert error.code == 503, error
            return False

    def start(self, *more: str) -> None:
        """Starts the keeper, with more arguments if there are any, and returns when the node answers."""
        self.begin(*more)
        self.wait_started()

    def wait_started(self) -> None:
        """Waits until a node that was begun answers."""
        self.wait_ready(NODE_START_SECONDS)
        self.tag = self.json("status")["tag"]

    def begin(self, *more: str) -> None:
        """Starts the keeper and waits for nothing."""
        self.data.mkdir(parents=True, exist_ok=True)
        # 0.0.0.0, because containers fetch blobs from the address of their bridge.
        arguments = [
            str(self.binary), "start", "--data", str(self.data),
            "--api", f"0.0.0.0:{self.api_port}", "--web", f"127.0.0.1:{self.web_port}", *more,
        ]  # fmt: skip
        if self.config is not None:
            file = self.data.parent / f"{self.data.name}.toml"
            file.write_text(self.config)
            arguments += ["--config", str(file)]
        with self.log.open("ab") as log:
            self.keeper = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=node_environment(self.binary) | self.environment, start_new_session=True,
            )  # fmt: skip

    def join(self, other: Node) -> None:
        """Starts the node as a new member of another one's cluster."""
        join = other.json("token", "create", "--node")["join"].split()
        self.start(*join[2:])

    def wait_ready(self, seconds: float) -> None:
        """Waits until `shoal status` is answered."""

        def answers() -> bool:
            assert self.keeper is not None
            if self.keeper.poll() is not None:
                raise AssertionError(f"the keeper ended with {self.keeper.returncode}:\n{self.log_tail()}")
            return self.shoal("status", "--json", check=False).returncode == 0

        try:
            wait_for("the node to answer `shoal status`", answers, seconds, every=0.1)
        except AssertionError as error:
            raise AssertionError(f"{error}\nthe node's log ends:\n{self.log_tail()}") from None

    def stop(self) -> None:
        """Stops the keeper with SIGTERM; kills it and all below it when that takes too long."""
        if self.keeper is None:
            return
        keeper, self.keeper = self.keeper, None
        if keeper.poll() is not None:
            return
        below = descendants(keeper.pid)
        keeper.send_signal(signal.SIGTERM)
        try:
            keeper.wait(NODE_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            for pid in [keeper.pid, *below]:
                kill(pid, signal.SIGKILL)
            keeper.wait(10)
            self.clean_up()
            raise AssertionError(f"the node did not stop in {NODE_STOP_SECONDS} s:\n{self.log_tail()}") from None

    def child(self) -> int:
        """Returns the process id of the node itself, the keeper's child."""
        assert self.keeper is not None
        below = [pid for pid in children(self.keeper.pid) if command_line(pid)]
        assert len(below) == 1, f"the keeper {self.keeper.pid} should have one child, the node; it has {below}"
        return below[0]

    def kill_child(self) -> int:
        """Kills the node with SIGKILL, not its keeper, and returns the killed process id."""
        pid = self.child()
        os.kill(pid, signal.SIGKILL)
        return pid

    def lose(self) -> None:
        """Kills everything of the node at once, as when its machine is lost, and takes away what is left of it on this one."""
        if self.keeper is None or self.keeper.poll() is not None:
            return
        # A keeper that saw the end of its node would start it again.
        self.keeper.send_signal(signal.SIGSTOP)
        below = descendants(self.keeper.pid)
        for pid in [*below, self.keeper.pid]:
            kill(pid, signal.SIGKILL)
        self.keeper.wait(10)
        self.keeper = None
        # Until its last thread is gone a process holds its ports.
        wait_until_none("processes of the lost node", lambda: [pid for pid in below if threads(pid)], 20)
        self.clean_up()

    def clean_up(self) -> dict[str, int]:
        """Takes away what the node left on the machine, which does not run and may not come back; says what it was."""
        # Of the build under test: releases before do not know the command.
        words = [str(shoal_binary()), "cleanup", "--json", "--data", str(self.data)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=outer_environment())
        assert done.returncode == 0, f"{' '.join(words)} ended with {done.returncode}: {done.stderr}"
        return json.loads(done.stdout)

    def wait_reborn(self, old: int, seconds: float = NODE_START_SECONDS) -> int:
        """Waits until the keeper has started another node than `old` and it answers."""

        def reborn() -> int | None:
            assert self.keeper is not None
            fresh = [pid for pid in children(self.keeper.pid) if pid != old and command_line(pid)]
            return fresh[0] if fresh else None

        pid = wait_for(f"the keeper to start the node again after {old}", reborn, seconds)
        self.wait_ready(seconds)
        return pid

    def shoal(self, *arguments: str, check: bool = True, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """Runs `shoal ARGUMENTS --data DIR` and returns its output."""
        done = subprocess.run(
            [str(self.binary), *arguments, "--data", str(self.data)],
            capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL, env=outer_environment(),
        )  # fmt: skip
        if check and done.returncode != 0:
            raise AssertionError(f"shoal {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    def json(self, *arguments: str) -> Any:
        """Runs a `shoal` command with --json and returns what it printed, parsed."""
        return json.loads(self.shoal(*arguments, "--json").stdout)

    def create_token(self, *arguments: str) -> Token:
        """Makes a token by `shoal token create --json`."""
        made = self.json("token", "create", *arguments)
        return Token(id=made["token_id"], secret=made["token_secret"])

    def tasks(self, app_id: str | None = None) -> list[dict[str, Any]]:
        """Returns the tasks that `shoal task list` shows, of one app or of all."""
        rows = self.json("task", "list")
        return [row for row in rows if app_id is None or app_id in row.values()]

    def sandboxes(self) -> set[int]:
        """Returns the process ids of the gVisor sandboxes below the keeper."""
        assert self.keeper is not None
        return {pid for pid in descendants(self.keeper.pid) if "boot" in (words := command_line(pid)) and "runsc" in words[0]}

    def cpu_seconds(self) -> float:
        """Returns the CPU time that all containers of this node have used, as the machine counts it."""
        for used in self._cpu_seconds_of(f"shoal-{self.tag}").values():
            return used
        raise AssertionError(f"no cgroup of this node counts CPU time (tag {self.tag})")

    def cpu_seconds_of_each(self) -> dict[str, float]:
        """Returns the CPU time that each of its containers has used, by the folders of their cgroups."""
        return self._cpu_seconds_of(f"shoal-{self.tag}/*")

    def _cpu_seconds_of(self, group: str) -> dict[str, float]:
        found: dict[str, float] = {}
        for kind, read in (
            ("cpuacct.usage", lambda text: int(text) / 1e9),
            ("cpu.stat", lambda text: int(dict(line.split() for line in text.splitlines()).get("usage_usec", 0)) / 1e6),
        ):
            for file in () if found else Path("/sys/fs/cgroup").glob(f"**/{group}/{kind}"):
                # A container may end meanwhile.
                with contextlib.suppress(OSError):
                    found[str(file.parent)] = read(file.read_text())
        return found

    def log_tail(self, lines: int = 40) -> str:
        """Returns the last lines of what keeper and node printed."""
        if not self.log.exists():
            return "(no log)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def flip(file: Path, at: int) -> None:
    """Flips a bit of a file; doing it again makes it whole."""
    with file.open("r+b") as bytes_of:
        bytes_of.seek(at)
        byte = bytes_of.read(1)
        bytes_of.seek(at)
        bytes_of.write(bytes([byte[0] ^ 1]))


def threads(pid: int) -> int:
    """Returns how many threads a process has that have not ended."""
    running = 0
    for task in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):
            # The state follows the name, which is in brackets and may hold anything.
            running += task.read_text().rpartition(")")[2].split()[0] not in "ZX"
    return running


def kill(pid: int, number: signal.Signals) -> None:
    """Sends a signal to a process that may be gone already."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def outer_environment() -> dict[str, str]:
    """Returns the environment without what belongs to the test's own Python, client and settings."""
    dropped = ("MODAL_", "PYTEST", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "SHOAL_BIN", "SHOAL_TEST", "SHOAL_CLIENT")
    return {name: value for name, value in os.environ.items() if not name.startswith(dropped)}


def node_environment(binary: Path | None = None) -> dict[str, str]:
    """Returns the environment of a node, of the binary under test where none is named; builds trust the certificates that this machine's
    tools trust."""
    environment = outer_environment()
    if bundle := environment.get("SSL_CERT_FILE"):
        environment.setdefault("SHOAL_IMAGES__CA_BUNDLE", bundle)
    # The disk is not the node's alone, and what others keep on it is no fault. Releases before do not know the setting.
    if binary in (None, shoal_binary()):
        environment.setdefault("SHOAL_DISK__FULL_PERCENT", "98")
    return environment


@dataclass
class Line:
    """One line that a client process printed, and when it came (time.time())."""

    at: float
    text: str
    stream: str


@dataclass
class Running:
    """A client process whose lines are collected as they come."""

    process: subprocess.Popen[str]
    lines: list[Line] = field(default_factory=list)
    _readers: list[threading.Thread] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("stdout", "stderr"):
            reader = threading.Thread(target=self._read, args=(name,), daemon=True)
            reader.start()
            self._readers.append(reader)

    def _read(self, name: str) -> None:
        for text in getattr(self.process, name):
            self.lines.append(Line(time.time(), text.rstrip("\n"), name))

    def text(self, stream: str | None = None) -> str:
        """Returns what was printed so far, on one stream or both."""
        return "\n".join(line.text for line in list(self.lines) if stream in (None, line.stream))

    def find(self, pattern: str) -> Line | None:
        """Returns the first line that a regular expression is found in."""
        return next((line for line in list(self.lines) if re.search(pattern, line.text)), None)

    def wait_line(self, pattern: str, seconds: float) -> Line:
        """Waits until a line matches; fails with all output when the process ends before."""

        def seen() -> Line | None:
            ended = self.process.poll() is not None
            if ended:
                self._join()
            found = self.find(pattern)
            if found is None and ended:
                raise AssertionError(f"ended with {self.process.returncode} before a line like {pattern!r}:\n{self.text()}")
            return found

        try:
            return wait_for(f"a line like {pattern!r}", seen, seconds, every=0.01)
        except AssertionError as error:
            raise AssertionError(f"{error}\noutput so far:\n{self.text()}") from None

    def app_id(self, seconds: float = 60) -> str:
        """Returns the id of the app that `modal run` announces when it starts."""
        line = self.wait_line(r"ap-[0-9A-Za-z]{22}", seconds)
        found = re.search(r"ap-[0-9A-Za-z]{22}", line.text)
        assert found is not None
        return found.group()

    def interrupt(self) -> None:
        """Does what Ctrl-C does in a terminal."""
        self.process.send_signal(signal.SIGINT)

    def _join(self) -> None:
        for reader in self._readers:
            reader.join(10)

    def wait(self, seconds: float) -> int:
        """Waits for the end and returns the exit code; fails with all output at the deadline."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"client still runs after {seconds:g} s:\n{self.text()}") from None
        self._join()
        return self.process.returncode

    def ok(self, seconds: float) -> Running:
        """Waits for a good end."""
        code = self.wait(seconds)
        assert code == 0, f"client ended with {code}:\n{self.text()}"
        return self

    def close(self) -> None:
        """Ends the process if a test left it running."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        self._join()


class Client:
    """Client processes against one node: a home, a configuration and a token of their own."""

    def __init__(self, node: Node, token: Token, home: Path):
        self.node, self.token, self.home = node, token, home
        self.started: list[Running] = []
        home.mkdir(parents=True, exist_ok=True)

    def environment(self) -> dict[str, str]:
        """Returns the environment of a client process; nothing of the user's own settings is in it."""
        return outer_environment() | {
            "HOME": str(self.home),
            "MODAL_CONFIG_PATH": str(self.home / ".modal.toml"),
            "MODAL_SERVER_URL": self.node.url,
            "MODAL_TOKEN_ID": self.token.id,
            "MODAL_TOKEN_SECRET": self.token.secret,
            "PYTHONPATH": str(HERE / "client_site"),
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "COLUMNS": "200",
            "NO_COLOR": "1",
            "TERM": "dumb",
        }

    def start(self, *arguments: str, cwd: Path = HERE, environment: dict[str, str] | None = None) -> Running:
        """Starts the client's Python with these arguments."""
        process = subprocess.Popen(
            [str(client_python()), *arguments], cwd=cwd, env=self.environment() | (environment or {}),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, errors="replace", bufsize=1, start_new_session=True,
        )  # fmt: skip
        running = Running(process)
        self.started.append(running)
        return running

    def modal(self, *arguments: str, cwd: Path = HERE, environment: dict[str, str] | None = None) -> Running:
        """Starts `modal ARGUMENTS`."""
        return self.start("-m", "modal", *arguments, cwd=cwd, environment=environment)

    def run(self, program: str | Path, *arguments: str, cwd: Path = HERE, environment: dict[str, str] | None = None) -> Running:
        """Starts `modal run PROGRAM ARGUMENTS`; a bare name is a file of tests/sdk/programs."""
        if isinstance(program, str):
            program = PROGRAMS / program
        return self.modal("run", str(program), *arguments, cwd=cwd, environment=environment)

    def deploy(self, program: str, name: str, seconds: float = 120) -> Running:
        """Deploys a file of tests/sdk/programs under a name and waits for it."""
        return self.modal("deploy", "--name", name, str(PROGRAMS / program)).ok(seconds)

    def apps(self) -> list[dict[str, Any]]:
        """Returns what `modal app list --json` prints."""
        return json.loads(self.modal("app", "list", "--json").ok(60).text("stdout"))

    def logs(self, app: str, *arguments: str, seconds: float = 120) -> list[str]:
        """Returns the lines that `modal app logs` prints."""
        return self.modal("app", "logs", app, *arguments).ok(seconds).text("stdout").splitlines()

    def stop_app(self, app: str) -> None:
        """Stops an app by `modal app stop`; an app that is stopped already is fine."""
        self.modal("app", "stop", "--yes", app).wait(60)

    def close(self) -> None:
        """Ends what was left running."""
        for running in self.started:
            running.close()
        self.started.clear()


@contextmanager
def variables(**values: str) -> Iterator[None]:
    """Sets environment variables of this process for a block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
