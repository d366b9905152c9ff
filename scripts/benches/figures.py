"""The benches: each measures Shoal and its baseline in turn and returns figures.

A figure's value is the median of its samples (or the percentile it is named after), and so is its
baseline. Those without an aim are for information.
"""

from __future__ import annotations

import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import IO

from rig import APP, MANY, Rig


@dataclass
class Figure:
    """One line of the report."""

    name: str
    unit: str
    samples: list[float]
    baselines: list[float]
    baseline_what: str
    # The ratio that is aimed at: at most this much for times, at least for rates.
    aim: float | None = None
    higher_is_better: bool = False
    percentile: int = 50
    notes: list[str] = field(default_factory=list)

    @property
    def value(self) -> float:
        return percentile(self.samples, self.percentile)

    @property
    def baseline(self) -> float:
        return percentile(self.baselines, self.percentile)

    @property
    def ratio(self) -> float:
        return self.value / self.baseline

    @property
    def best(self) -> tuple[float, float]:
        """Returns the best sample of both."""
        of = max if self.higher_is_better else min
        return of(self.samples), of(self.baselines)

    @property
    def met(self) -> bool | None:
        if self.aim is None:
            return None
        return self.ratio >= self.aim if self.higher_is_better else self.ratio <= self.aim


def percentile(samples: list[float], which: int) -> float:
    """Returns a percentile; that of few samples is the nearest one."""
    if which == 50:
        return statistics.median(samples)
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, len(ordered) * which // 100)]


def container_start(rig: Rig) -> Iterator[Figure]:
    """A container by the engine, in a sandbox made ahead and in one made for it, until its first output, beside `runsc run`."""
    task, work = rig.task, rig.work()
    lines = rig.tool_lines(
        "containers", "--tree", str(task.root), "--folder", str(rig.image), *image_path(rig),
        "--work", str(work), "--runsc", rig.runsc, "--times", str(5 if rig.quick else 30),
    )  # fmt: skip
    for program in ("echo", "python"):
        raw = [line["ms"] for line in lines if (line["program"], line["by"]) == (program, "runsc")]
        for by, name, aim in (("ahead", "container_start", 1.0), ("engine", "container_start_made", None)):
            ours = [line for line in lines if (line["program"], line["by"]) == (program, by)]
            what = f"runsc run of the same {program} on a folder"
            figure = Figure(f"{name}_{program}", "ms", [line["ms"] for line in ours], raw, what, aim)
            phases = {phase: statistics.median(line[phase] for line in ours) for phase in ("network", "prepare", "create", "start")}
            figure.notes.append("of it, in ms: " + ", ".join(f"{phase} {ms:.1f}" for phase, ms in phases.items()))
            yield figure


def image_path(rig: Rig) -> list[str]:
    """Returns the flags by which the tool's programs find those of the image."""
    return [f"--env={name}={value}" for name, value in rig.task.env if name == "PATH"]


def cold_start(rig: Rig) -> Iterator[Figure]:
    """A call of a function without containers, until its result, beside a bare entrypoint in runsc until it asks for an input."""
    relay, node = rig.relay, rig.caller("node")
    samples, baselines, waits = [], [], 3 if rig.quick else 12
    # The first of both reads files from disk; it is not counted.
    for turn in range(waits + 1):
        rig.wait_none("cold")
        taken = node.do(do="remote", function="cold", times=1)["ms"][0]
        rig.wait_none("cold")
        bare = relay.order("bare cold")["ms"]
        if turn > 0:
            samples.append(taken)
            baselines.append(bare)
    yield Figure("cold_start", "ms", samples, baselines, "bare entrypoint by runsc run, until it asks for an input", 0.35)


def interleaved(rig: Rig, rounds: int, sides: list[str], **order) -> dict[str, list[dict]]:
    """Gives the same order to the clients of several sides in turn, and returns their answers."""
    _ = rig.relay
    answers: dict[str, list[dict]] = {side: [] for side in sides}
    for turn in range(rounds):
        first = turn % len(sides)
        for side in sides[first:] + sides[:first]:
            answers[side].append(rig.caller(side).do(**order))
    return answers


def all_ms(answers: list[dict]) -> list[float]:
    return [ms for answer in answers for ms in answer["ms"]]


def rates(answers: list[dict], count: int) -> list[float]:
    return [count / answer["seconds"] for answer in answers]


RELAY = "relay, the same entrypoints"


def all_sides(rig: Rig) -> list[str]:
    """Returns what calls can be sent to: Shoal, its baseline, and what is there for information."""
    return ["node", "relay", "null", *(["ray"] if rig.ray else [])]


def warm_remote(rig: Rig) -> Iterator[Figure]:
    """A call of a function whose container waits, one after another."""
    sides, (rounds, times) = all_sides(rig), (3, 50) if rig.quick else (12, 100)
    interleaved(rig, 1, sides, do="remote", function="warm", times=30)
    ms = {side: all_ms(of) for side, of in interleaved(rig, rounds, sides, do="remote", function="warm", times=times).items()}
    yield Figure("warm_remote_p50", "ms", ms["node"], ms["relay"], RELAY, 1.15)
    yield Figure("warm_remote_p99", "ms", ms["node"], ms["relay"], RELAY, 1.15, percentile=99)
    for side in sides[2:]:
        yield Figure(f"{side}_remote_p50", "ms", ms[side], ms["relay"], RELAY)


def map_throughput(rig: Rig) -> Iterator[Figure]:
    """One map over small inputs, served by as many containers on both sides."""
    sides, what = all_sides(rig), f"{RELAY} ({MANY} of them)"
    interleaved(rig, 1, sides, do="map", function="many", inputs=100)
    for name, inputs, rounds in (("1k", 1000, 2 if rig.quick else 6), ("10k", 10_000, 1 if rig.quick else 3)):
        rate = {side: rates(of, inputs) for side, of in interleaved(rig, rounds, sides, do="map", function="many", inputs=inputs).items()}
        yield Figure(f"map_throughput_{name}", "inputs/s", rate["node"], rate["relay"], what, 0.9, higher_is_better=True)
        for side in sides[2:]:
            yield Figure(f"{side}_map_{name}", "inputs/s", rate[side], rate["relay"], what, higher_is_better=True)


def submit(rig: Rig) -> Iterator[Figure]:
    """Spawned calls until they are accepted: synced to disk here, in memory there."""
    sides, what = ["node", "relay"], "relay, which keeps nothing"
    rounds, times = (2, 100) if rig.quick else (4, 300)
    interleaved(rig, 1, sides, do="spawn", function="warm", times=20)
    ms = {side: all_ms(of) for side, of in interleaved(rig, rounds, sides, do="spawn", function="warm", times=times).items()}
    yield Figure("submit_p50", "ms", ms["node"], ms["relay"], what)
    together = interleaved(rig, rounds, sides, do="spawn", function="warm", times=times, at_once=16)
    rate = {side: rates(of, times) for side, of in together.items()}
    yield Figure("submit_16_at_once", "spawns/s", rate["node"], rate["relay"], what, higher_is_better=True)


# How many idle containers are many.
IDLE_MANY = 50
# What a node without containers may use, in per cent of a core.
IDLE_NODE_AIM = 0.5


def idle(rig: Rig) -> Iterator[Figure]:
    """CPU and memory of a node with no container and with many that wait, and of a relay with as many."""
    seconds, node = 10 if rig.quick else 60, rig.caller("node")
    assert rig.node.keeper is not None
    of_node = rig.node.keeper.pid
    rig.live_task("idle")
    relay = rig.start_relay("idle relay", {"idle": IDLE_MANY})
    try:
        relay.answer()
        bare = idling(rig, relay.process.pid, seconds)
    finally:
        relay.close(60)
    # What other benches keep would count too.
    kept = {"warm": 1, "many": MANY}
    for tag in kept:
        node.do(do="keep", function=tag, containers=0)
    rig.wait_idle_node()
    none = idling(rig, of_node, seconds)
    node.do(do="keep", function="idle", containers=IDLE_MANY)
    rig.wait_tasks("idle", IDLE_MANY)
    many = idling(rig, of_node, seconds)
    node.do(do="keep", function="idle", containers=0)
    for tag, containers in kept.items():
        node.do(do="keep", function=tag, containers=containers)
    what = f"the relay with {IDLE_MANY} entrypoints"
    yield Figure("idle_cpu_0", "% of a core", [none[0]], [IDLE_NODE_AIM], "what is aimed at", 1.0)
    yield Figure(f"idle_cpu_{IDLE_MANY}", "% of a core", [many[0]], [bare[0]], what)
    yield Figure("idle_memory_0", "MiB", [none[1]], [bare[1]], what)
    yield Figure(f"idle_memory_{IDLE_MANY}", "MiB", [many[1]], [bare[1]], what)


def idling(rig: Rig, pid: int, seconds: float) -> tuple[float, float]:
    """Lets a process and all below it be for a while; returns the share of a core it used meanwhile (%), and its memory (MiB)."""
    time.sleep(10)  # Starts have their aftermath.
    began, before = time.perf_counter(), rig.used_by(pid)
    time.sleep(seconds)
    after, passed = rig.used_by(pid), time.perf_counter() - began
    return 100 * (after.cpu_seconds - before.cpu_seconds) / passed, after.memory_mib


def log_lines(rig: Rig) -> Iterator[Figure]:
    """Lines that a container prints, from the first to the last at a reader, beside a pipe from runsc."""
    lines, samples, baselines = 20_000, [], []
    for turn in range(2 if rig.quick else 5):
        samples.append(lines / followed(rig, lines, f"round {turn} of {rig.folder.name}"))
        (piped,) = rig.tool_lines("lines", "--folder", str(rig.image), *image_path(rig), "--work", str(rig.work()), "--lines", str(lines))
        baselines.append(lines / piped["seconds"])
    yield Figure("log_lines", "lines/s", samples, baselines, "the same lines by a pipe from runsc run", higher_is_better=True)


def followed(rig: Rig, lines: int, mark: str) -> float:
    """Returns the seconds from the first to the last line of a container at a follower of its app's logs."""
    node = rig.caller("node")  # Else there is no such app yet.
    words = [str(rig.node.binary), "logs", APP, "--follow", "--tail", "1", "--data", str(rig.data)]
    follower = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=rig.log)
    assert follower.stdout is not None
    watch = threading.Timer(120, follower.kill)
    watch.start()
    try:
        # The lines are to be read while they come.
        with ThreadPoolExecutor() as beside:
            call = beside.submit(node.do, do="spawn", function="chatter", times=1, arguments=[lines, mark])
            seconds = span(follower.stdout, f"first of {mark}", f"last of {mark}")
            call.result()
        return seconds
    finally:
        watch.cancel()
        follower.kill()
        follower.wait()


def span(stream: IO[bytes], first: str, last: str) -> float:
    """Returns the seconds from one line of a stream to another."""
    for line in stream:
        if line.rstrip() == first.encode():
            began = time.perf_counter()
        elif line.rstrip() == last.encode():
            return time.perf_counter() - began
    raise RuntimeError(f"a stream ended before {last!r} came")


def store(rig: Rig, action: str) -> Iterator[Figure]:
    """Runs the chunk store beside plain files."""
    if "store" not in rig.__dict__:
        rig.__dict__["store"] = rig.tool_lines("store", "--work", str(rig.work()), "--times", str(3 if rig.quick else 10))
    found = [line for line in rig.__dict__["store"] if line["do"] == action]
    what = "plain files, one syncfs" if action == "write" else "plain files, not verified"
    for shape in ("2kib", "64kib", "1mib"):
        by = {by: [line["mib_per_s"] for line in found if (line["shape"], line["by"]) == (shape, by)] for by in ("store", "files")}
        yield Figure(f"store_{action}_{shape}", "MiB/s", by["store"], by["files"], what, higher_is_better=True)


def store_write(rig: Rig) -> Iterator[Figure]:
    """Chunks written and made durable, beside plain files."""
    return store(rig, "write")


def store_read(rig: Rig) -> Iterator[Figure]:
    """Chunks read and verified from a warm page cache, beside plain files."""
    return store(rig, "read")


BENCHES: dict[str, Callable[[Rig], Iterator[Figure]]] = {
    bench.__name__: bench
    for bench in (container_start, cold_start, warm_remote, map_throughput, submit, idle, log_lines, store_write, store_read)
}
