"""Twenty machines of which four are lost at once, the leader among them, in the midst of a map."""

from __future__ import annotations

import time

from harness import NODE_START_SECONDS, PROGRAMS, wait_for

from .faults import scenario
from .masses import CALLS, INPUTS, answered
from .network import Placed
from .world import World

NODES, LOST, VOTERS = 20, 4, 5
# What has its copies on one node more than are lost at once is had all the same. Twenty nodes share the cores of one machine: a sandbox made
# ahead on each, and a look each second at what each is to keep, would take them from what is tried.
TWENTY = f"""
copies = {LOST + 1}
[containers]
sandboxes_ahead = 0
[calls]
settle_seconds = 2
[cluster]
replace_voter_seconds = 60
[repair]
after_seconds = 120
every_seconds = 10
"""
# How long all inputs may take, with the loss of four nodes on two cores; how long it may take until another node votes, in seconds.
SECONDS, VOTE_SECONDS = 600, 240


@scenario(registry=False, nodes=NODES, config=TWENTY, containers=2)
def twenty(world: World) -> None:
    """Of twenty nodes four are lost at once under a map of 2,000 inputs and 200 spawns: the leader, a home of calls, two that follow."""
    cluster = world.cluster
    asked = cluster.client(cluster.door().url).start(str(PROGRAMS / "fleet_mass.py"), world.app, str(INPUTS), str(CALLS))
    asked.wait_line("^in the midst", 240)
    lost = chosen(world)
    for which in lost:
        world.excuse(which)
    world.fault(f"nodes {lost} are lost: {lost[0]} leads, and calls are at home at {sorted(set(cluster.homes(world.app).values()) & set(lost))}")
    cluster.each(Placed.lose, *lost)
    # What is asked meanwhile waits behind the map.
    facts = answered(world, asked.ok(SECONDS), "four nodes were lost")
    began = time.time()
    wait_for("another node to vote in place of the lost one", lambda: len(cluster.voters() - set(lost)) == VOTERS, VOTE_SECONDS, every=1)
    world.say(f"nodes {sorted(cluster.voters())} vote, {time.time() - began:.0f} s after the map's end")
    # Through a node that has none of it, while the lost ones are away.
    world.check_calls(facts, max(set(cluster.running()) - cluster.voters() - holders(world)))
    cluster.each(Placed.begin, *lost)
    cluster.each(lambda node: node.wait_ready(2 * NODE_START_SECONDS), *lost)
    world.say("the lost nodes answer")
    cluster.settled(world.app)
    world.say("all is as before")
    world.progress(120)
    world.check_calls(facts, lost[1])


def chosen(world: World) -> list[int]:
    """Returns which nodes are to be lost: the leader, one where calls are at home, and others that only follow. No calls have both of
    their copies there."""
    leader, vote = world.cluster.leader(), world.cluster.voters()
    of_function = world.cluster.holders(world.app).values()
    homes = sorted({nodes[0] for nodes in of_function} - {leader}, key=lambda which: (which in vote, which))
    spared = [which for which in homes if not any(set(nodes) <= {leader, which} for nodes in of_function)]
    follow = sorted(set(world.cluster.nodes) - vote - holders(world))
    return [leader, *spared[:1], *world.random.sample(follow, LOST)][:LOST]


def holders(world: World) -> set[int]:
    """Returns the nodes that have calls of some function."""
    return {which for nodes in world.cluster.holders(world.app).values() for which in nodes}
