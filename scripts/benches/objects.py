"""Benches of queues and dicts, beside Redis on the same disk with a sync for every change."""

from __future__ import annotations

from collections.abc import Iterator

from figure import Figure
from rig import Rig

# How many of a client's operations are under way at once, on both sides.
AT_ONCE = 16
WHAT = "Redis with appendonly and appendfsync always, as many at once"


def object_rates(rig: Rig, what: str, *, reads: bool = False) -> tuple[list[float], list[float]]:
    """Returns operations in a second, of the node's objects and of Redis, in turn."""
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
    return found["node"], found["redis"]


def queue_rate(rig: Rig) -> Iterator[Figure]:
    """Items put into a queue and taken out again, each change synced to disk, beside RPUSH and LPOP of Redis."""
    ours, theirs = object_rates(rig, "queue_pairs")
    yield Figure("queue_put_get", "pairs/s", ours, theirs, WHAT, higher_is_better=True)


def dict_rate(rig: Rig) -> Iterator[Figure]:
    """Entries put into a dict and read again, beside SET and GET of Redis; and reads alone."""
    ours, theirs = object_rates(rig, "dict_pairs")
    yield Figure("dict_put_get", "pairs/s", ours, theirs, WHAT, higher_is_better=True)
    ours, theirs = object_rates(rig, "dict_pairs", reads=True)
    yield Figure("dict_get", "reads/s", ours, theirs, WHAT, higher_is_better=True)
