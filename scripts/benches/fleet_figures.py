"""The benches of a cluster: three nodes in namespaces of their own on this machine, which share its cores and its disk."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from figure import Figure
from fleet import APP, NODES, Fleet
from harness import wait_for
from partner import Partner
from usage import by_processes

if TYPE_CHECKING:
    from rig import Rig

BIG = "shoal-bench-big"
ETCD = "etcd with three members on the same disk, as many clients"


def cluster_writes(rig: Rig) -> Iterator[Figure]:
    """Spawned calls and inputs that are accepted, and names of the registry, by many clients at once, beside keys of etcd."""
    fleet = rig.fleet()
    assert fleet.client is not None
    rounds, seconds = (1, 3) if rig.quick else (3, 8)
    token = fleet.client.token
    with fleet.program(keeps=False), fleet.etcd_beside() as etcd_urls:
        # All nodes are taken, so that what is spawned waits.
        fill = f"import modal\nfor _ in {NODES}:\n    modal.Function.from_name('{APP}', 'hold').spawn(3000)"
        fleet.client.start("-c", fill).ok(120)
        wait_for("all nodes to be taken", lambda: set(fleet.workers("hold")) == set(NODES), 120, every=0.5)
        ids = f"import modal\nfor n in range(8):\n    print(modal.Function.from_name('{APP}', f'queued_{{n}}').hydrate().object_id)"
        functions = fleet.client.start("-c", ids).ok(60).text("stdout").split()
        urls = [word for which in NODES for word in ("--url", fleet.node(which).url)]
        etcd = [word for url in etcd_urls for word in ("--url", url)]
        shoal = [*urls, "--token-id", token.id, "--token-secret", token.secret]
        what = {
            "spawns": ["--what", "spawns", *shoal, *(word for id in functions for word in ("--function", id))],
            "inputs": ["--what", "inputs", *shoal, *(word for id in functions for word in ("--function", id))],
            "dicts": ["--what", "dicts", *shoal],
            "etcd": ["--what", "etcd", *etcd],
        }
        found: dict[str, list[dict[str, float]]] = {name: [] for name in what}
        for turn in range(rounds):
            for name in list(what)[turn % len(what) :] + list(what)[: turn % len(what)]:
                before = fleet.servers_cpu_seconds()
                line = fleet.tool_line("writes", "--prefix", f"bench-{uuid.uuid4().hex[:8]}", "--seconds", str(seconds), *what[name])
                # The others' part of it is what they use when they have nothing to do.
                line["cpu_ms"] = 1000 * (fleet.servers_cpu_seconds() - before) / line["begun"]
                found[name].append(line)
    for name, figure, unit, aim in (
        ("spawns", "cluster_spawns", "spawns/s", 4.0),
        ("inputs", "cluster_inputs", "inputs/s", 4.0),
        ("dicts", "cluster_registry", "writes/s", 1.0),
    ):
        rate = {of: [line["per_second"] for line in found[of]] for of in (name, "etcd")}
        one = Figure(figure, unit, rate[name], rate["etcd"], ETCD, aim, higher_is_better=True)
        of = {of: sorted(line["p50_ms"] for line in found[of])[rounds // 2] for of in (name, "etcd")}
        one.notes.append(f"a request of 64 at once takes {of[name]:.1f} ms, one of etcd {of['etcd']:.1f} ms")
        if name == "inputs":
            one.notes.append("49 inputs a request, as the official client sends those of a map")
        yield one
        cpu = {of: [line["cpu_ms"] for line in found[of]] for of in (name, "etcd")}
        yield Figure(f"{figure}_cpu", "ms of CPU a write", cpu[name], cpu["etcd"], "as much of etcd's members")


def cluster_placements(rig: Rig) -> Iterator[Figure]:
    """Containers that are placed: decided by the scheduler, on the disks of a majority of three nodes, applied; beside keys of etcd."""
    fleet, seconds = rig.fleet(), 3 if rig.quick else 8
    found: dict[str, list[dict[str, float]]] = {"placements": [], "etcd": []}
    with fleet.etcd_beside() as urls:
        what = {
            "placements": ["placements", "--dir", str(fleet.folder / "placements")],
            "etcd": ["writes", "--what", "etcd", "--prefix", "bench", *(word for url in urls for word in ("--url", url))],
        }
        for turn in range(1 if rig.quick else 3):
            for name in list(what)[:: 1 if turn % 2 == 0 else -1]:
                found[name].append(fleet.tool_line(*what[name], "--seconds", str(seconds)))
                shutil.rmtree(fleet.folder / "placements", ignore_errors=True)
    rate = {name: [line["per_second"] for line in lines] for name, lines in found.items()}
    one = Figure("cluster_placements", "placements/s", rate["placements"], rate["etcd"], ETCD, 1.0, higher_is_better=True)
    middle = sorted(found["placements"], key=lambda line: line["round_p50_ms"])[len(found["placements"]) // 2]
    one.notes.append(f"{middle['in_a_round']} containers at once have their places after {middle['round_p50_ms']:.0f} ms")
    yield one


# What a call may wait for, in milliseconds, when a node is lost that it needs.
FAILOVER_AIM_MS = 5000.0


def cluster_failover(rig: Rig) -> Iterator[Figure]:
    """From the loss of a node (kill -9) to the first answer of a call that needs it: as its home, for its container, as the leader."""
    fleet, samples = rig.fleet(), {"home": [], "worker": [], "leader": []}
    with fleet.program():
        # Nobody is promised what only a lost machine had.
        fleet.settle(0)
        for turn in range(1 if rig.quick else 4):
            for role in samples:
                samples[role].append(lose(fleet, role))
    for role, taken in samples.items():
        yield Figure(f"cluster_failover_{role}", "ms", taken, [FAILOVER_AIM_MS], "what is aimed at", 1.0)


def lose(fleet: Fleet, role: str) -> float:
    """Loses the node that has a role for a call, calls through another, and returns how long the answer took, in milliseconds."""
    leader = fleet.cluster.leader()
    tag = {"home": "steady", "worker": "sole", "leader": f"at_{leader % len(NODES) + 1}_0"}[role]
    wanted = {"home": len(NODES), "worker": 1, "leader": 0}[role]
    wait_for(f"{wanted} containers of {tag}", lambda: len(fleet.workers(tag)) >= wanted, 60, every=0.5)
    victim = {"home": lambda: fleet.homes(APP)[tag], "worker": lambda: fleet.workers(tag)[0], "leader": lambda: leader}[role]()
    through = next(which for which in NODES if which not in (victim, leader)) if role != "leader" else victim % len(NODES) + 1
    client = fleet.caller(through, APP)
    try:
        client.do(do="look", function=tag)
        if role != "leader":
            client.do(do="remote", function=tag, times=3)
        fleet.progress(f"node {victim}, {role} of {tag}, is lost")
        began = time.perf_counter()
        fleet.node(victim).lose()
        client.do(do="remote", function=tag, times=1)
        taken = (time.perf_counter() - began) * 1000
        fleet.progress(f"answered after {taken:.0f} ms")
    finally:
        fleet.node(victim).start()
        fleet.settle()
        if role == "leader":
            client.do(do="keep", function=tag, containers=0)
            wait_for(f"the containers of {tag} to end", lambda: not fleet.workers(tag), 60, every=0.5)
    return taken


# The largest packets, in bytes, and what of a plain copy's speed is aimed at with them.
PACKETS = {1500: 0.5, 9000: 0.9}


def cluster_transfer(rig: Rig) -> Iterator[Figure]:
    """What a node lacks of an image, two thirds of it, brought to it, beside a copy of as many bytes by TLS over one TCP connection."""
    fleet, megabytes = rig.fleet(copies=1), 100 if rig.quick else 500
    file = fleet.folder / "bytes"
    for mtu, aim in PACKETS.items():
        fleet.set_mtu(mtu)
        samples, baselines = [], []
        for _ in range(1 if rig.quick else 3):
            image, there, lacking = big(fleet, megabytes)
            began = time.perf_counter()
            done = fleet.node(lacking).json("image", "warm", image, "--node", f"node-{lacking}")
            samples.append(done["bytes"] / (time.perf_counter() - began) / 1e6)
            write_bytes(file, done["bytes"])
            baselines.append(done["bytes"] / fleet.copy(file, there, lacking) / 1e6)
            fleet.stop_app(BIG)
        yield Figure(f"cluster_transfer_{mtu}", "MB/s", samples, baselines, "TLS over TCP, file to file, synced at the end", aim, higher_is_better=True)
    fleet.set_mtu(1500)


def write_bytes(file: Path, count: int) -> None:
    with file.open("wb") as out:
        for _ in range(0, count, 1 << 20):
            out.write(os.urandom(1 << 20))
        out.truncate(count)


def big(fleet: Fleet, megabytes: int) -> tuple[str, int, int]:
    """Builds an image that nobody has seen; returns it, a node that has all of it, and one that has its third of the chunks."""
    fleet.deploy("big_program.py", BIG, SHOAL_BENCH_MARK=uuid.uuid4().hex, SHOAL_BENCH_MEGABYTES=str(megabytes))

    def look() -> set[int]:
        return {which for which in NODES if f"node-{which}" in fleet.image_of(BIG)["whole_on"]}

    whole = wait_for("a node to have the image", look, 120, every=0.5)
    return fleet.image_of(BIG)["image_id"], min(whole), max(set(NODES) - whole)


# What a start on a node that has nothing of an image may take of one where all is.
COLD_AIM = 1.5


def cluster_cold_start(rig: Rig) -> Iterator[Figure]:
    """The first container of a new image on a node that has a third of its chunks, beside one on a node that has all of it."""
    fleet, megabytes = rig.fleet(copies=1), 200 if rig.quick else 1000
    samples, baselines = [], []
    for turn in range(2 if rig.quick else 5):
        _, there, lacking = big(fleet, megabytes)
        client = fleet.caller(1, BIG)
        for which, of in ((there, baselines), (lacking, samples)) if turn % 2 else ((lacking, samples), (there, baselines)):
            client.do(do="look", function=f"at_{which}")
            (taken,) = client.do(do="remote", function=f"at_{which}", times=1)["ms"]
            # The first of both reads files from disk; it is not counted.
            if turn > 0:
                of.append(taken)
        client.close(5)
        fleet.partners.remove(client)
        fleet.stop_app(BIG)
    yield Figure("cluster_cold_start", "ms", samples, baselines, f"the same with all of the {megabytes} MB on the node", COLD_AIM)


def cluster_idle(rig: Rig) -> Iterator[Figure]:
    """CPU and memory of nodes of a cluster that has nothing to do, beside members of etcd that have nothing to do."""
    fleet, seconds = rig.fleet(), 15 if rig.quick else 60
    with fleet.etcd_beside():
        fleet.settle(15)
        pids = {which: [fleet.node(which).keeper.pid, fleet.node(which).child()] for which in NODES}  # type: ignore[union-attr]
        looks = {**pids, **{f"etcd {number}": [member.pid] for number, member in enumerate(fleet.etcd)}}
        began, before = time.perf_counter(), {name: by_processes(of) for name, of in looks.items()}
        time.sleep(seconds)
        after, passed = {name: by_processes(of) for name, of in looks.items()}, time.perf_counter() - began
    share = {name: 100 * (after[name].cpu_seconds - before[name].cpu_seconds) / passed for name in looks}
    memory = {name: used.memory_mib for name, used in after.items()}
    for name, unit, values in (("cpu", "% of a core", share), ("memory", "MiB", memory)):
        ours, theirs = [values[which] for which in NODES], [value for of, value in values.items() if of not in NODES]
        yield Figure(f"cluster_idle_{name}", unit, ours, theirs, "a member of etcd")


def cluster_call(rig: Rig) -> Iterator[Figure]:
    """A warm call whose client, home and container are at three nodes, beside one where all are at one."""
    fleet, (rounds, times) = rig.fleet(), (3, 30) if rig.quick else (12, 50)
    with fleet.program():
        homes = {tag: (home, int(tag.split("_")[1])) for tag, home in fleet.homes(APP).items() if tag.startswith("at_")}
        apart = next(tag for tag, (home, at) in homes.items() if home != at)
        together = next(tag for tag, (home, at) in homes.items() if home == at)
        clients: dict[str, Partner] = {}
        for tag in (apart, together):
            home, at = homes[tag]
            clients[tag] = fleet.caller(at if tag == together else next(which for which in NODES if which not in (home, at)), APP)
            clients[tag].do(do="remote", function=tag, times=30)
        ms: dict[str, list[float]] = {apart: [], together: []}
        for turn in range(rounds):
            for tag in (apart, together) if turn % 2 else (together, apart):
                ms[tag] += clients[tag].do(do="remote", function=tag, times=times)["ms"]
    yield Figure("cluster_call_p50", "ms", ms[apart], ms[together], "client, home and container at one node")
    yield Figure("cluster_call_p99", "ms", ms[apart], ms[together], "client, home and container at one node", percentile=99)
