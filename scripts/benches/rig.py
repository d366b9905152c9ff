"""What the benches stand on: a node, relays beside it, client processes, the image as a folder.

Everything is made when it is first asked for, in a folder of its own, and taken down by `close`.
The node and the relay run the same entrypoint with the same arguments: those of the node's own
containers are read while they run and given to the relay.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "tests/sdk"))

from harness import SANDBOXES_AHEAD, Client, Node, client_python, node_environment, shoal_binary, wait_for  # noqa: E402
from fleet import Fleet  # noqa: E402
from partner import Partner  # noqa: E402
from usage import ControlGroups  # noqa: E402

# How many containers serve a map, by the node and behind the relay; program.py says the same.
MANY = 2
# Settings of the node by which builds reach the world, as variables, and what they are for a command.
EGRESS = {
    "PYTHON_INDEX": ["PIP_INDEX_URL"],
    "HTTP_PROXY": ["http_proxy", "HTTP_PROXY"],
    "HTTPS_PROXY": ["https_proxy", "HTTPS_PROXY"],
    "NO_PROXY": ["no_proxy", "NO_PROXY"],
}
# Where containers find what their task owns.
TASK_DIR = "/__modal/task"


@dataclass(frozen=True)
class Program:
    """Functions that benches call: an app, and the file that defines it."""

    app: str
    file: str


MAIN = Program("shoal-bench", "program.py")
NUMPY = Program("shoal-bench-numpy", "numpy_program.py")
SIZES = Program("shoal-bench-sizes", "sizes_program.py")
PROGRAMS = {program.app: program for program in (MAIN, NUMPY, SIZES)}
APP = MAIN.app
# The functions of the main program that keep containers, and how many.
KEPT = {"warm": 1, "many": MANY}


@dataclass(frozen=True)
class Task:
    """A container of the node, as its description says."""

    id: str
    root: Path
    argv: list[str]
    env: list[tuple[str, str]]
    cwd: str
    # Folders that it sees besides its task's own: (here, there).
    binds: list[tuple[str, str]]


class Rig:
    """The things that benches use; see the module."""

    def __init__(self, tool: Path, quick: bool, ray: Path | None, progress: Callable[[str], None]):
        # `ray` is a Python that has Ray, if it is to be measured too.
        self.quick, self.ray, self.progress = quick, ray, progress
        self.folder = Path(tempfile.mkdtemp(prefix="shoal-bench-"))
        # Copies, so that a build that goes on beside changes nothing in the middle of a run.
        self.tool = Path(shutil.copy2(tool, self.folder / "shoal-bench"))
        os.environ["SHOAL_BIN"] = str(shutil.copy2(shoal_binary(), self.folder / "shoal"))
        kept = os.environ.get("SHOAL_TEST_DATA")
        self.data = (Path(kept) if kept else self.folder) / "data"
        self.log = (self.folder / "log").open("ab")
        self.runsc = os.environ.get("SHOAL_RUNSC", "/usr/local/bin/runsc")
        self.at_close: list[Callable[[], None]] = []
        self._fleet: Fleet | None = None
        self.callers: dict[tuple[str, str, int], Partner] = {}
        self.deployed: set[Program] = set()
        self.work_folders = 0

    def close(self) -> None:
        """Takes everything down, the last made first, and removes the folder; says at the end what could not be."""
        errors: list[Exception] = []
        fleet = [self._fleet.close] if self._fleet is not None else []
        for close in [*fleet, *(partial(caller.close, 5) for caller in self.callers.values()), *reversed(self.at_close)]:
            try:
                close()
            except Exception as error:
                errors.append(error)
        self.log.close()
        mounted = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        left = [point for point in mounted if point.startswith((f"{self.folder}/", f"{self.data}/"))]
        if left:
            errors.append(RuntimeError(f"something is still mounted, {self.folder} stays: {', '.join(left)}"))
        else:
            shutil.rmtree(self.folder)
        if errors:
            raise ExceptionGroup("the benches could not be taken down in order", errors)

    def log_tail(self, lines: int = 40) -> str:
        """Returns the last lines of what the parts and the node printed."""
        texts = [path.read_text(errors="replace") for path in (self.folder / "log", self.data.parent / "data.log") if path.exists()]
        return "\n".join("\n".join(text.splitlines()[-lines:]) for text in texts)

    def work(self) -> Path:
        """Returns a new empty folder."""
        self.work_folders += 1
        folder = self.folder / f"work-{self.work_folders}"
        folder.mkdir()
        return folder

    @cached_property
    def node(self) -> Node:
        """The node, which answers."""
        self.progress(f"starting a node in {self.data}")
        node = Node(self.data)
        self.at_close.append(node.stop)
        node.start()
        # What a run that was killed has left would take its part of the machine.
        for app in node.json("app", "list"):
            if app["name"] in PROGRAMS and not app["stopped"]:
                node.shoal("app", "stop", app["app_id"])
        return node

    @cached_property
    def client(self) -> Client:
        """The real client towards the node."""
        return Client(self.node, self.node.create_token("--label", "bench"), self.folder / "home")

    def deploy(self, program: Program, environment: dict[str, str] | None = None) -> None:
        """Deploys a program, once in a run."""
        if program in self.deployed:
            return
        client = self.client
        self.progress(f"deploying {program.file} (the first time, this builds its images)")
        self.at_close.append(lambda: client.stop_app(program.app))
        client.modal("deploy", "--name", program.app, str(HERE / program.file), cwd=HERE, environment=environment).ok(1800)
        self.deployed.add(program)

    def caller(self, of: str, program: Program = MAIN, number: int = 0) -> Partner:
        """The client process towards "node", "relay" or "null", or Ray's driver, which calls the functions of a program.

        There may be several, told apart by a number."""
        which = (of, program.app, number)
        if which in self.callers:
            return self.callers[which]
        if of == "ray":
            # Sockets are made in it, and their paths have to be short.
            folder = Path(tempfile.mkdtemp(prefix="sb-ray-", dir="/tmp"))
            self.at_close.append(lambda: shutil.rmtree(folder, ignore_errors=True))
            self.callers[which] = Partner("Ray", [str(self.ray), str(HERE / "ray_caller.py"), str(folder)], os.environ.copy(), self.log)
        else:
            self.deploy(program)
            environment = self.client.environment()
            if of != "node":
                environment["MODAL_SERVER_URL"] = f"http://127.0.0.1:{self.relay_ports[of]}"
            arguments = [str(client_python()), str(HERE / "caller.py"), program.app]
            self.callers[which] = Partner(f"the client of the {of} for {program.app}", arguments, environment, self.log)
        return self.callers[which]

    def tasks_of(self, tag: str) -> list[str]:
        """Returns the ids of the tasks of a function that live on the node."""
        return [task["task_id"] for task in self.node.tasks() if task["function"] == tag]

    def live_task(self, tag: str) -> Path:
        """Calls a function and keeps the arguments of its task in the folder; returns the task's own folder."""
        self.caller("node").do(do="remote", function=tag, times=1)
        own = self.folder / tag
        own.mkdir(exist_ok=True)
        of_task = self.data / "run/tasks" / self.tasks_of(tag)[0]
        shutil.copy(of_task / "arguments.bin", own)
        return of_task

    def described(self, of_task: Path) -> Task:
        """Returns a task as its container is described."""
        for config in Path("/run/shoal").glob("*/bundles/*/config.json"):
            text = config.read_text()
            if str(of_task) in text:
                return task_of(of_task.name, json.loads(text), config.parent)
        raise RuntimeError(f"no container of task {of_task.name} is described in /run/shoal")

    @cached_property
    def task(self) -> Task:
        """The container of `warm`, which stays, and its root as a plain folder.

        A sandbox made ahead says nothing of what it runs, so the node is started without them for a look."""
        _ = self.caller("node")
        self.restart({"SHOAL_CONTAINERS__SANDBOXES_AHEAD": "0", "SHOAL_CONTAINERS__ZYGOTES": "false"})
        task = self.described(self.live_task("warm"))
        self.progress("copying the image into a folder")
        subprocess.run(["cp", "-a", str(task.root), str(self.folder / "image")], check=True)
        self.restart({})
        self.live_task("warm")
        return task

    def restart(self, environment: dict[str, str]) -> None:
        """Starts the node anew, with these variables: nothing of an image is in its memory, nor in the kernel's for its containers."""
        self.node.stop()
        self.node.environment = environment
        self.node.start()

    @contextmanager
    def without_zygotes(self) -> Iterator[Callable[[], None]]:
        """Lets containers start as the first of an image does; yields what starts the node anew and waits until it is ready for one."""

        def anew() -> None:
            self.restart({"SHOAL_CONTAINERS__ZYGOTES": "false"})
            wait_for("sandboxes made ahead", lambda: len(self.node.sandboxes()) >= SANDBOXES_AHEAD, 60)
            # The last one's process is there; it is not ready yet.
            time.sleep(1)

        try:
            yield anew
        finally:
            self.restart({})

    @contextmanager
    def nothing_kept(self) -> Iterator[None]:
        """Lets the node have no containers but those that the block asks for."""
        kept = KEPT if MAIN in self.deployed else {}
        for tag in kept:
            self.caller("node").do(do="keep", function=tag, containers=0)
        wait_for("the node to have no container", lambda: not self.node.tasks(), 120, every=0.5)
        try:
            yield
        finally:
            for tag, containers in kept.items():
                self.caller("node").do(do="keep", function=tag, containers=containers)

    @property
    def image(self) -> Path:
        """The root of the node's containers as a plain folder."""
        _ = self.task
        return self.folder / "image"

    @cached_property
    def relay(self) -> Partner:
        """The relay with its entrypoints started."""
        for tag in ("many", "cold", "at_once", "in_batches"):
            self.live_task(tag)
        relay = self.start_relay("relay", {"warm": 1, "many": MANY, "cold": 0, "at_once": 1, "in_batches": 1})
        self.at_close.append(relay.close)
        self.relay_ports = relay.answer()
        return relay

    def start_relay(self, name: str, containers: dict[str, int], groups: list[Path] | None = None) -> Partner:
        """Starts a relay with so many entrypoints of each function, whose arguments `live_task` has kept; it answers when they are there.

        What it runs by `runsc run` is put into `groups`."""
        setup = {
            "work": str(self.work()), "runsc": self.runsc, "folder": str(self.image),
            "argv": self.task.argv, "env": self.task.env, "cwd": self.task.cwd, "binds": self.task.binds,
            "task_dir": TASK_DIR, "socket": "api.sock",
            "node": self.node.url, "token_id": self.client.token.id, "token_secret": self.client.token.secret, "app": APP,
            "groups": list(map(str, groups or [])),
            "functions": [
                {"tag": tag, "dir": str(self.folder / tag), "containers": count} for tag, count in containers.items()
            ],
        }  # fmt: skip
        file = self.folder / f"{name}.json"
        file.write_text(json.dumps(setup))
        self.progress(f"starting the {name} and its entrypoints")
        return Partner(f"the {name}", [str(self.tool), "relay", "--setup", str(file)], os.environ.copy(), self.log)

    @cached_property
    def relay_ports(self) -> dict[str, int]:
        """The ports of the relay and the null server."""
        _ = self.relay
        return self.__dict__["relay_ports"]

    @cached_property
    def redis_socket(self) -> Path:
        """The socket of a Redis server that syncs each change, on the disk that the node is on."""
        server = shutil.which("redis-server")
        if server is None:
            raise RuntimeError("there is no redis-server here: scripts/bench installs it")
        folder = Path(tempfile.mkdtemp(prefix="redis-", dir=self.data.parent))
        self.at_close.append(lambda: shutil.rmtree(folder))
        socket = self.folder / "redis.sock"
        words = [
            server, "--port", "0", "--unixsocket", str(socket), "--dir", str(folder), "--daemonize", "no", "--save", "",
            "--appendonly", "yes", "--appendfsync", "always",
        ]  # fmt: skip
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        self.at_close.append(lambda: end(process))
        wait_for("Redis", socket.exists, 30)
        return socket

    @cached_property
    def redis(self) -> Partner:
        """A client of that server in Python; it takes orders about queues and dicts."""
        words = [str(client_python()), str(HERE / "redis_caller.py"), str(self.redis_socket)]
        client = Partner("the client of Redis", words, os.environ.copy(), self.log)
        self.at_close.append(client.close)
        return client

    def wait_tasks(self, tag: str, count: int) -> None:
        """Waits until a function has so many containers, and all have asked for work."""

        def waiting() -> bool:
            functions = self.node.json("explain", APP)["parts"]
            tasks = next(function["parts"] for function in functions if function["name"] == tag)
            return sum(any(word.startswith("its program asked for work") for word in task["says"]) for task in tasks) == count

        wait_for(f"{count} containers of {tag} that wait for work", waiting, 300, every=1)

    def wait_none(self, tag: str) -> None:
        """Waits until functions whose tags begin so have no container left."""
        wait_for(f"the containers of {tag} to end", lambda: not any(task["function"].startswith(tag) for task in self.node.tasks()), 60, every=0.2)

    def image_bytes(self, app: str, tag: str) -> int:
        """Returns how many bytes the files of a function's image hold."""
        images = self.node.json("image", "list")
        return next(image["size_bytes"] for image in images if any((use["app"], use["function"]) == (app, tag) for use in image["used_by"]))

    def plain_pip(self) -> Callable[[list[str]], float]:
        """Returns what installs packages into a folder by the Python of the image, without Shoal, and returns the seconds it took.

        It runs in the image as a plain folder, and reaches the index as the node's builds do."""
        root, own = self.image, self.image / "plain"
        own.mkdir()
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
        null = root / "dev/null"
        null.unlink(missing_ok=True)
        os.mknod(null, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        environment = {"PATH": dict(self.task.env)["PATH"], "HOME": "/plain/home"}
        settings = node_environment()
        if bundle := settings.get("SHOAL_IMAGES__CA_BUNDLE"):
            shutil.copy(bundle, own / "ca.pem")
            environment |= dict.fromkeys(("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE"), "/plain/ca.pem")
        for setting, variables in EGRESS.items():
            if value := settings.get(f"SHOAL_IMAGES__BUILD__EGRESS__{setting}"):
                environment |= dict.fromkeys(variables, value)

        def install(packages: list[str]) -> float:
            words = ["chroot", str(root), "python", "-m", "pip", "install", "--target", "/plain/packages", *packages]
            began = time.perf_counter()
            subprocess.run(words, check=True, env=environment, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, timeout=600)
            taken = time.perf_counter() - began
            for made in ("packages", "home"):
                shutil.rmtree(own / made, ignore_errors=True)
            return taken

        return install

    def fleet(self, copies: int = 2) -> Fleet:
        """Returns a cluster of three nodes with addresses of their own, which keep so many copies of what images hold."""
        if self._fleet is not None and self._fleet.copies != copies:
            self._fleet.close()
            self._fleet = None
        if self._fleet is None:
            kept = os.environ.get("SHOAL_TEST_DATA")
            self.progress("starting a cluster of three nodes")
            seed = (Path(kept) if kept else self.folder) / "fleet-seed"
            self._fleet = Fleet(self.work(), seed, self.tool, self.log, self.progress, copies)
        return self._fleet

    def control_groups(self) -> ControlGroups:
        """Makes control groups for what is to be counted beside the node's containers."""
        groups = ControlGroups.make(self.folder.name)
        self.at_close.append(groups.remove)
        return groups

    def tool_lines(self, *arguments: str) -> list[dict[str, Any]]:
        """Runs a part of the tool to its end and returns its lines."""
        done = subprocess.run([str(self.tool), *arguments], stdout=subprocess.PIPE, stderr=self.log, text=True, timeout=1200)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join([self.tool.name, *arguments])} ended with {done.returncode}")
        return [json.loads(line) for line in done.stdout.splitlines()]


def end(process: subprocess.Popen) -> None:
    """Ends a process that goes when it is asked."""
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


def task_of(id: str, config: dict[str, Any], bundle: Path) -> Task:
    """Reads the description of a container."""
    process = config["process"]
    binds = [
        (mount["source"], mount["destination"])
        for mount in config["mounts"]
        if mount["type"] == "bind" and mount["destination"] != TASK_DIR and not mount["source"].startswith(str(bundle))
    ]
    return Task(
        id=id, root=Path(config["root"]["path"]), argv=process["args"],
        env=[tuple(pair.split("=", 1)) for pair in process["env"]], cwd=process["cwd"], binds=binds,
    )  # fmt: skip
