"""Machines that are lost while much is asked at once."""

from __future__ import annotations

import json
from typing import Any

from harness import PROGRAMS, Running

from .faults import back, home_of, scenario
from .world import World

# How many inputs a map has, and how many calls are spawned beside it.
INPUTS, CALLS = 2000, 200
# How long all of them may take, with the loss of a machine, in seconds.
SECONDS = 400


@scenario(registry=False)
def masses(world: World) -> None:
    """A home of calls, a machine with containers and the leader are lost, each in the midst of a map of 2,000 inputs and 200 spawns."""
    for role in ("home of calls", "which runs containers", "the leader"):
        client = world.cluster.client(world.cluster.door().url)
        asked = client.start(str(PROGRAMS / "fleet_mass.py"), world.app, str(INPUTS), str(CALLS))
        asked.wait_line("^in the midst", 120)
        which = who(world, role)
        world.excuse(which)
        world.fault(f"node {which}, {role}, is lost")
        world.cluster.nodes[which].lose()
        facts = answered(world, asked.ok(SECONDS), f"{role} was lost")
        back(world, which)
        # Through every node, also the one that was lost.
        world.check_calls(facts, *world.cluster.running())


def answered(world: World, asked: Running, when: str) -> list[dict[str, Any]]:
    """Holds what a client that has ended was told against what it asked for, and returns it."""
    facts = [json.loads(line) for line in asked.text("stdout").splitlines() if line.startswith("{")]
    (mapped,) = [fact for fact in facts if fact["kind"] == "mapped"]
    calls = {fact["call"] for fact in facts if fact["kind"] == "result"}
    world.say(f"{mapped['count']} inputs and {len(calls)} calls are answered, the map within {mapped['took']:.0f} s")
    if not mapped["whole"] or mapped["marks"] != INPUTS:
        world.report.broken.append(f"one_outcome: the map of {INPUTS} inputs gave {mapped} when {when}")
    if len(calls) != CALLS:
        world.report.broken.append(f"accepted_survives: {len(calls)} of {CALLS} calls have a result when {when}")
    return facts


def who(world: World, role: str) -> int:
    """Returns a node of a role, of those that are not the leader, if there are, but for the leader."""
    leader = world.cluster.leader()
    match role:
        case "the leader":
            return leader
        case "which runs containers":
            return min(world.cluster.workers() - {leader} or {leader})
        case _:
            return home_of(world, {leader})[0]
