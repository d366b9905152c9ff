"""What the benches stand on: a node, a relay beside it, client processes, the image as a folder.

Everything is made when it is first asked for, in a folder of its own, and taken down by `close`.
The node and the relay run the same entrypoint with the same arguments: those of the node's own
containers are read while they run and given to the relay.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "tests/sdk"))

from harness import Client, Node, client_python, descendants, shoal_binary, wait_for  # noqa: E402

APP = "shoal-bench"
# How many containers serve a map, by the node and behind the relay; program.py says the same.
MANY = 2
# How long a process may take for one answer, in seconds.
ANSWER_SECONDS = 300
# Where containers find what their task owns.
TASK_DIR = "/__modal/task"


class Partner:
    """A process that takes orders on stdin and answers each with a line of JSON."""

    def __init__(self, name: str, arguments: list[str], environment: dict[str, str], log: IO[bytes]):
        self.name = name
        self.process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment, text=True, bufsize=1,
            start_new_session=True,
        )  # fmt: skip

    def answer(self, seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
        """Waits for the next line; one that takes too long ends the process."""
        assert self.process.stdout is not None
        watch = threading.Timer(seconds, self.process.kill)
        watch.start()
        try:
            line = self.process.stdout.readline()
        finally:
            watch.cancel()
        if not line:
            raise RuntimeError(f"{self.name} ended with {self.process.wait(10)} and gave no answer within {seconds:g} s")
        return json.loads(line)

    def order(self, line: str) -> dict[str, Any]:
        """Gives an order and waits for its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        return self.answer()

    def do(self, **order: Any) -> dict[str, Any]:
        """Gives an order in JSON."""
        return self.order(json.dumps(order))

    def close(self, seconds: float = 30) -> None:
        """Ends it by the end of its stdin, or by force."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
            self.process.wait(seconds)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self.process.kill()
            self.process.wait(10)


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
        self.callers: dict[str, Partner] = {}
        self.work_folders = 0

    def close(self) -> None:
        """Takes everything down, the last made first, and removes the folder; says at the end what could not be."""
        errors: list[Exception] = []
        for close in [*(partial(caller.close, 5) for caller in self.callers.values()), *reversed(self.at_close)]:
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
        return node

    @cached_property
    def client(self) -> Client:
        """The real client towards the node, with the program deployed."""
        client = Client(self.node, self.node.create_token("--label", "bench"), self.folder / "home")
        self.progress("deploying the functions (the first time, this builds an image)")
        self.at_close.append(lambda: client.stop_app(APP))
        client.modal("deploy", "--name", APP, str(HERE / "program.py"), cwd=HERE).ok(1200)
        return client

    def caller(self, of: str) -> Partner:
        """The client process towards "node", "relay" or "null", or Ray's driver."""
        if of == "ray" and of not in self.callers:
            # Sockets are made in it, and their paths have to be short.
            folder = Path(tempfile.mkdtemp(prefix="sb-ray-", dir="/tmp"))
            self.at_close.append(lambda: shutil.rmtree(folder, ignore_errors=True))
            self.callers[of] = Partner("Ray", [str(self.ray), str(HERE / "ray_caller.py"), str(folder)], os.environ.copy(), self.log)
        elif of not in self.callers:
            environment = self.client.environment()
            if of != "node":
                environment["MODAL_SERVER_URL"] = f"http://127.0.0.1:{self.relay_ports[of]}"
            arguments = [str(client_python()), str(HERE / "caller.py"), APP]
            self.callers[of] = Partner(f"the client of the {of}", arguments, environment, self.log)
        return self.callers[of]

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
        """Starts the node anew, with these variables."""
        self.node.stop()
        self.node.environment = environment
        self.node.start()

    @property
    def image(self) -> Path:
        """The root of the node's containers as a plain folder."""
        _ = self.task
        return self.folder / "image"

    @cached_property
    def relay(self) -> Partner:
        """The relay with its entrypoints started."""
        for tag in ("many", "cold"):
            self.live_task(tag)
        relay = self.start_relay("relay", {"warm": 1, "many": MANY, "cold": 0})
        self.at_close.append(relay.close)
        self.relay_ports = relay.answer()
        return relay

    def start_relay(self, name: str, containers: dict[str, int]) -> Partner:
        """Starts a relay with so many entrypoints of each function, whose arguments `live_task` has kept; it answers when they are there."""
        setup = {
            "work": str(self.work()), "runsc": self.runsc, "folder": str(self.image),
            "argv": self.task.argv, "env": self.task.env, "cwd": self.task.cwd, "binds": self.task.binds,
            "task_dir": TASK_DIR, "socket": "api.sock",
            "node": self.node.url, "token_id": self.client.token.id, "token_secret": self.client.token.secret, "app": APP,
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

    def wait_tasks(self, tag: str, count: int) -> None:
        """Waits until a function has so many containers that have asked for work."""
        wait_for(f"{count} containers of {tag}", lambda: len(self.tasks_of(tag)) == count, 300, every=0.5)

    def wait_idle_node(self) -> None:
        """Waits until the node has no container at all."""
        wait_for("the node to have no container", lambda: not self.node.tasks(), 120, every=0.5)

    def wait_none(self, tag: str) -> None:
        """Waits until a function has no container left."""
        wait_for(f"the containers of {tag} to end", lambda: not self.tasks_of(tag), 60, every=0.2)

    def used_by(self, pid: int) -> Used:
        """Returns what a process and all below it have used and hold."""
        pids = [pid, *descendants(pid)]
        return Used(cpu_seconds=sum(map(cpu_seconds, pids)), memory_mib=sum(map(memory_mib, pids)))

    def tool_lines(self, *arguments: str) -> list[dict[str, Any]]:
        """Runs a part of the tool to its end and returns its lines."""
        done = subprocess.run([str(self.tool), *arguments], stdout=subprocess.PIPE, stderr=self.log, text=True, timeout=1200)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join([self.tool.name, *arguments])} ended with {done.returncode}")
        return [json.loads(line) for line in done.stdout.splitlines()]


@dataclass(frozen=True)
class Used:
    """What a tree of processes has used and holds."""

    cpu_seconds: float
    memory_mib: float


def cpu_seconds(pid: int) -> float:
    """Returns the CPU time of a process, and of children that it has waited for; none for one that is gone."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(int(word) for word in words[11:15]) / os.sysconf("SC_CLK_TCK")


def memory_mib(pid: int) -> float:
    """Returns the memory of a process, pages that it shares counted in part."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


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
