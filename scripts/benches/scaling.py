"""Benches of many inputs at once: taken together by a container, accepted, kept waiting, and spread over containers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from figure import RELAY, Figure, interleaved, rates
from rig import Partner, Rig
from usage import by_processes

# Spawned calls that are to be accepted in a second.
SPAWNS_AIM = 1000.0
# How many containers a function gets at once; program.py's `fan` has no limit below it.
FAN = 8
# What a container for each of so many inputs may take of the time of as many plain ones.
FAN_AIM = 1.1
# Inputs that wait while memory is looked at.
QUEUED = 100_000


def taken_together(rig: Rig, name: str, tag: str, what: str) -> Iterator[Figure]:
    """Maps over small inputs of which one container takes many at a time, on both sides."""
    inputs, rounds = (1000, 1) if rig.quick else (10_000, 4)
    sides = ["node", "relay"]
    interleaved(rig, 1, sides, do="map", function=tag, inputs=200)
    rate = {side: rates(of, inputs) for side, of in interleaved(rig, rounds, sides, do="map", function=tag, inputs=inputs).items()}
    yield Figure(name, "inputs/s", rate["node"], rate["relay"], f"{RELAY}, {what}", 0.9, higher_is_better=True)


def map_concurrent(rig: Rig) -> Iterator[Figure]:
    """A map over a function with `@concurrent`: one container has up to a hundred inputs at once."""
    return taken_together(rig, "map_concurrent", "at_once", "one container with 100 inputs at once")


def map_batched(rig: Rig) -> Iterator[Figure]:
    """A map over a function with `@batched`: one container gets up to fifty inputs in a call."""
    return taken_together(rig, "map_batched", "in_batches", "one container, batches of 50")


def spawn_rate(rig: Rig) -> Iterator[Figure]:
    """Spawned calls accepted from several client processes at once, each synced to disk; the relay keeps nothing."""
    _ = rig.relay
    rounds, processes, each = (1, 2, 200) if rig.quick else (4, 4, 2000)
    rate: dict[str, list[float]] = {"node": [], "relay": []}
    # The first of both opens connections; it is not counted.
    for turn in range(rounds + 1):
        for side in rate:
            callers = [rig.caller(side, number=number) for number in range(processes)]
            seconds = together([lambda caller=caller: submit(caller, each if turn else 20) for caller in callers])
            if turn > 0:
                rate[side].append(processes * each / max(seconds))
            for caller in callers:
                caller.do(do="drain")
    yield Figure("spawn_rate", "spawns/s", rate["node"], [SPAWNS_AIM], "what is aimed at", 1.0, higher_is_better=True)
    yield Figure("spawn_rate_relay", "spawns/s", rate["node"], rate["relay"], "relay, which keeps nothing", higher_is_better=True)


def submit(caller: Partner, times: int) -> float:
    return caller.do(do="submit", function="warm", times=times, at_once=64)["seconds"]


def together(work: list[Callable[[], float]]) -> list[float]:
    """Does all of it at once, and returns what each returned."""
    with ThreadPoolExecutor(len(work)) as beside:
        return list(beside.map(lambda one: one(), work))


def scale_out(rig: Rig) -> Iterator[Figure]:
    """Inputs of a function without containers, until each runs in one of its own, beside bare entrypoints started at once."""
    relay, node, samples, baselines = rig.relay, rig.caller("node"), [], []
    # The first of both reads files from disk; it is not counted.
    for turn in range((1 if rig.quick else 5) + 1):
        rig.wait_none("fan")
        found = node.do(do="fan", function="fan", inputs=FAN, seconds=15)
        rig.wait_none("fan")
        bare = relay.order(f"bare cold {FAN}")["ms"]
        if found["containers"] != FAN:
            raise RuntimeError(f"{FAN} inputs that run at once were in {found['containers']} containers")
        if turn > 0:
            samples.append(found["ms"])
            baselines.append(bare)
    what = f"{FAN} bare entrypoints by runsc run at once, until all ask for an input"
    yield Figure(f"scale_0_to_{FAN}", "ms", samples, baselines, what, FAN_AIM)


def queued_memory(rig: Rig) -> Iterator[Figure]:
    """What inputs that wait cost the node in memory, in a spawned map and as calls of their own, beside the relay, which keeps them there."""
    count = 5_000 if rig.quick else QUEUED
    rig.live_task("stuck")
    relay = rig.start_relay("queue relay", {"stuck": 0})
    try:
        rig.relay_ports["queue"] = relay.answer()["relay"]
        for shape in ("map", "calls"):
            ours, theirs = [], []
            for side, samples in (("node", ours), ("queue", theirs)):
                caller = rig.caller(side)
                assert rig.node.keeper is not None
                pids = [rig.node.child()] if side == "node" else [relay.process.pid]
                # What comes with the first of everything is not of the inputs.
                caller.do(do="queue", function="stuck", inputs=500, shape=shape)
                before = by_processes(pids).memory_mib
                caller.do(do="queue", function="stuck", inputs=count, shape=shape)
                samples.append((by_processes(pids).memory_mib - before) * (1 << 20) / count)
                if side == "node":
                    caller.do(do="cancel")
            figure = Figure(f"queued_memory_{shape}", "bytes/input", ours, theirs, "relay, which keeps everything in memory")
            figure.notes.append(f"{count} inputs waited")
            yield figure
    finally:
        relay.close(60)
        rig.wait_none("stuck")
        # What ended is still known; what is measured after this is to begin with little.
        time.sleep(1)
