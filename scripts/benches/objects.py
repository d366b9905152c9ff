"""Benches of queues and dicts, beside Redis on the same disk with a sync for every change."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

from figure import Figure
from rig import Rig

# How many of the official client's operations are under way at once, and as many of Redis in Python.
AT_ONCE = 16
# What Redis does is done in one table a dict, as Shoal does it.
WHAT = "Redis with appendonly and appendfsync always, as many at once"


def served(rig: Rig, what: str) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Returns what the node and Redis do in a second for 64 clients in one process, in turn, and how long one takes, in milliseconds."""
    rounds, seconds = (1, 2) if rig.quick else (5, 4)
    token = rig.client.token
    sides = {
        "node": ["--url", rig.node.url, "--token-id", token.id, "--token-secret", token.secret],
        "redis": ["--redis", f"redis+unix://{rig.redis_socket}"],
    }
    rates: dict[str, list[float]] = {side: [] for side in sides}
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, words in sides.items():
            prefix = f"bench-{uuid.uuid4().hex[:8]}"
            line = rig.tool_lines("objects", "--what", what, "--prefix", prefix, "--seconds", str(seconds), *words)[-1]
            rates[side].append(line["per_second"])
            times[side].append(line["p50_ms"])
    return rates, times


def server_figure(rig: Rig, name: str, unit: str, what: str, aim: float | None = None) -> Figure:
    rates, times = served(rig, what)
    figure = Figure(name, unit, rates["node"], rates["redis"], WHAT, aim, higher_is_better=True)
    half = {side: sorted(taken)[len(taken) // 2] for side, taken in times.items()}
    figure.notes.append(f"64 clients in Rust; one turn takes {half['node']:.1f} ms, with Redis {half['redis']:.1f} ms")
    return figure


def sdk_figure(rig: Rig, name: str, unit: str, what: str, *, reads: bool = False) -> Figure:
    """The same through the official client, whose own work for each request is most of it, beside a few lines of Python for Redis."""
    rounds, pairs = (2, 200) if rig.quick else (6, 2000)
    sides = {"node": rig.caller("node"), "redis": rig.redis}
    found: dict[str, list[float]] = {side: [] for side in sides}
    # The first of both opens connections; it is not counted.
    for turn in range(rounds + 1):
        for side, partner in sides.items():
            order = {"do": what, "pairs": pairs if turn else 20, "at_once": AT_ONCE, "reads": reads}
            seconds = partner.do(**order)["seconds"]
            if turn > 0:
                found[side].append(pairs / seconds)
    figure = Figure(name, unit, found["node"], found["redis"], WHAT, higher_is_better=True)
    figure.notes.append("through the official client, in Python")
    return figure


def queue_rate(rig: Rig) -> Iterator[Figure]:
    """Items put into a queue and taken out again, each change synced to disk, beside RPUSH and LPOP of Redis."""
    yield server_figure(rig, "queue_put_get", "pairs/s", "queues", 1.0)
    yield sdk_figure(rig, "queue_put_get_sdk", "pairs/s", "queue_pairs")


def dict_rate(rig: Rig) -> Iterator[Figure]:
    """Entries put into a dict and read again, beside HSET and HGET of Redis; and reads alone."""
    yield server_figure(rig, "dict_put_get", "pairs/s", "entries")
    yield server_figure(rig, "dict_get", "reads/s", "reads")
    yield sdk_figure(rig, "dict_put_get_sdk", "pairs/s", "dict_pairs")
    yield sdk_figure(rig, "dict_get_sdk", "reads/s", "dict_pairs", reads=True)
