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
from typing import IO

from figure import RELAY, Figure, all_ms, interleaved, rates
from fleet_figures import cluster_call, cluster_cold_start, cluster_failover, cluster_idle, cluster_placements, cluster_transfer, cluster_writes
from objects import dict_rate, queue_rate
from rig import APP, MANY, NUMPY, SIZES, Rig
from scaling import map_batched, map_concurrent, queued_memory, scale_out, spawn_rate
from usage import ControlGroups, Used, by_processes


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
        bare = relay.order("bare cold 1")["ms"]
        if turn > 0:
            samples.append(taken)
            baselines.append(bare)
    yield Figure("cold_start", "ms", samples, baselines, "bare entrypoint by runsc run, until it asks for an input", 0.35)


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


# How many containers start at once; program.py says the same.
BURST = 20
# What so many may take of the time of as many plain ones.
BURST_AIM = 1.1


def burst(rig: Rig) -> Iterator[Figure]:
    """Many containers that start at once: first results beside bare entrypoints, and the engine alone beside `runsc run`."""
    relay, node, tags = rig.relay, rig.caller("node"), [f"burst_{number}" for number in range(BURST)]
    samples, baselines = [], []
    # The first of both reads files from disk; it is not counted.
    for turn in range((2 if rig.quick else 6) + 1):
        rig.wait_none("burst_")
        (taken,) = node.do(do="together", functions=tags)["ms"]
        rig.wait_none("burst_")
        bare = relay.order(f"bare cold {BURST}")["ms"]
        if turn > 0:
            samples.append(taken)
            baselines.append(bare)
    what = f"{BURST} bare entrypoints by runsc run at once, until all ask for an input"
    yield Figure(f"burst_{BURST}", "ms", samples, baselines, what, BURST_AIM)
    lines = rig.tool_lines(
        "burst", "--folder", str(rig.image), *image_path(rig), "--work", str(rig.work()), "--runsc", rig.runsc,
        "--count", str(BURST), "--times", str(2 if rig.quick else 8),
    )  # fmt: skip
    by = {by: [line["ms"] for line in lines if line["by"] == by] for by in ("engine", "runsc")}
    what = f"{BURST} runsc run of the same python at once, on a folder"
    yield Figure(f"burst_{BURST}_engine", "ms", by["engine"], by["runsc"], what, BURST_AIM)


# What the largest image may take of the time of the smallest.
SIZE_AIM = 1.2


def image_size(rig: Rig) -> Iterator[Figure]:
    """The first container of a node that has just started, in images with more and more files that nobody reads, beside the smallest."""
    sizes = [100, 1000] if rig.quick else [100, 1000, 5000]
    rig.deploy(SIZES, {"SHOAL_BENCH_MEGABYTES": ",".join(map(str, sizes))})
    node, samples, notes = rig.caller("node", SIZES), {size: [] for size in sizes}, {}
    with rig.nothing_kept(), rig.without_zygotes() as anew:
        # The first of each reads files from disk; it is not counted.
        for turn in range((2 if rig.quick else 6) + 1):
            first = turn % len(sizes)
            for size in sizes[first:] + sizes[:first]:
                tag = f"megabytes_{size}"
                anew()
                node.do(do="look", function=tag)
                (taken,) = node.do(do="remote", function=tag, times=1)["ms"]
                notes[size] = f"{size} MB: {began(rig, tag)}; {rig.node.json('status')['files_read_bytes'] >> 10} KiB were read"
                if turn > 0:
                    samples[size].append(taken)
    for size in sizes[1:]:
        figure = Figure(f"image_size_{size / 1000:g}gb", "ms", samples[size], samples[sizes[0]], f"the same with {sizes[0] / 1000:g} GB", SIZE_AIM)
        figure.notes += [note for of, note in notes.items() if of in (size, sizes[0])]
        yield figure


def began(rig: Rig, tag: str) -> str:
    """Returns what the node says of how the container of a function began, which waits."""
    (task,) = rig.tasks_of(tag)
    return next(word for word in rig.node.json("explain", task)["says"] if word.startswith("its container is "))


# What may be read of an image.
READ_AIM = 0.1


def numpy_bytes(rig: Rig) -> Iterator[Figure]:
    """What a node that has just started reads of its store until `import numpy` has returned in a container, beside the size of the image."""
    node, samples = rig.caller("node", NUMPY), []
    with rig.nothing_kept(), rig.without_zygotes() as anew:
        for _ in range(1 if rig.quick else 3):
            anew()
            node.do(do="remote", function="imports", times=1)
            samples.append(rig.node.json("status")["files_read_bytes"] / (1 << 20))
    size = rig.image_bytes(NUMPY.app, "imports") / (1 << 20)
    yield Figure("numpy_bytes", "MiB", samples, [size], "the image (numpy and pandas on debian_slim)", READ_AIM)


PACKAGES = ["numpy", "pandas"]


def build(rig: Rig) -> Iterator[Figure]:
    """An image with numpy and pandas until the client has it, beside `pip install --target` by the same Python in a plain folder."""
    node, samples, baselines = rig.caller("node"), [], []
    plain_pip = rig.plain_pip()
    # The first of both makes the base image, and fetches what caches of the network keep; it is not counted.
    for turn in range((1 if rig.quick else 4) + 1):
        taken = node.do(do="build", packages=PACKAGES)["seconds"]
        plain = plain_pip(PACKAGES)
        if turn > 0:
            samples.append(taken)
            baselines.append(plain)
    yield Figure("build", "s", samples, baselines, "pip install --target by the same Python in a plain folder")


# What a node without containers may use, in per cent of a core.
IDLE_NODE_AIM = 0.5


def idle(rig: Rig) -> Iterator[Figure]:
    """CPU and memory of a node with no container and with many that wait, beside a relay with as many bare entrypoints, at the same time."""
    count, seconds = (10, 15) if rig.quick else (50, 60)
    groups = rig.control_groups()
    rig.live_task("idle")
    relay = rig.start_relay("idle relay", {"idle": 0}, groups.folders)
    try:
        relay.answer()
        with rig.nothing_kept():
            none = idling(rig, relay.process.pid, groups, seconds)
            rig.progress(f"starting {count} containers and as many bare entrypoints")
            relay.order(f"keep idle {count}")
            rig.caller("node").do(do="keep", function="idle", containers=count)
            rig.wait_tasks("idle", count)
            many = idling(rig, relay.process.pid, groups, seconds)
            rig.caller("node").do(do="keep", function="idle", containers=0)
            rig.wait_none("idle")
    finally:
        relay.close(120)
    of_none, of_many = none["cpu"], many["cpu"]
    aimed = "what is aimed at"
    figure = Figure("idle_cpu_0", "% of a core", [of_none["node"] + of_none["containers"]], [IDLE_NODE_AIM], aimed, 1.0)
    figure.notes.append(f"of it {of_none['containers']:.2f} is the sandboxes made ahead")
    yield figure
    for kind, unit in (("cpu", "% of a core"), ("memory", "MiB")):
        of = many[kind]
        yield Figure(f"idle_{kind}_{count}_node", unit, [of["node"]], [of["relay"]], f"the relay with {count} bare entrypoints")
        yield Figure(f"idle_{kind}_{count}_containers", unit, [of["containers"]], [of["bare"]], f"{count} bare entrypoints by runsc run")
    of_none = none["memory"]
    yield Figure("idle_memory_0_node", "MiB", [of_none["node"]], [of_none["relay"]], "the relay with none")


def idling(rig: Rig, relay: int, bare: ControlGroups, seconds: float) -> dict[str, dict[str, float]]:
    """Lets everything be for a while; returns which share of a core each used meanwhile (%), and its memory (MiB).

    "node" is its processes, "containers" all sandboxes of it; "relay" and "bare" are what they are held against."""
    assert rig.node.keeper is not None
    of_node, containers = [rig.node.keeper.pid, rig.node.child()], ControlGroups.named(f"shoal-{rig.node.tag}")
    looks: dict[str, Callable[[], Used]] = {
        "node": lambda: by_processes(of_node), "containers": containers.used,
        "relay": lambda: by_processes([relay]), "bare": bare.used,
    }  # fmt: skip
    time.sleep(15)  # Starts have their aftermath.
    began, before = time.perf_counter(), {name: look() for name, look in looks.items()}
    time.sleep(seconds)
    after, passed = {name: look() for name, look in looks.items()}, time.perf_counter() - began
    share = {name: 100 * (after[name].cpu_seconds - before[name].cpu_seconds) / passed for name in looks}
    return {"cpu": share, "memory": {name: used.memory_mib for name, used in after.items()}}


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
    for bench in (
        container_start, cold_start, burst, image_size, numpy_bytes, build,
        warm_remote, map_throughput, map_concurrent, map_batched, submit, spawn_rate, scale_out, queued_memory,
        queue_rate, dict_rate, idle, log_lines, store_write, store_read,
        cluster_writes, cluster_placements, cluster_failover, cluster_transfer, cluster_cold_start, cluster_idle, cluster_call,
    )
}  # fmt: skip
