"""What the nodes of a cluster take of the machine while nothing is asked of them."""

from __future__ import annotations

import time
from pathlib import Path

from .cluster import Cluster

# For how long they are looked at.
SECONDS = 20


def idle(cluster: Cluster) -> str:
    """Says what nodes take, the middle one of each role: of the processor, and of memory."""
    pids = {which: node.child() for which, node in cluster.running().items()}
    before = {which: spent(pid) for which, pid in pids.items()}
    time.sleep(SECONDS)
    shares = {which: (spent(pid) - before[which]) / SECONDS for which, pid in pids.items()}
    vote, leader = cluster.voters(), cluster.leader()
    roles = {"leads": {leader}, "votes": vote - {leader}, "follows": set(pids) - vote - {leader}}
    said = []
    for role, nodes in roles.items():
        if nodes:
            share, memory = middle([shares[which] for which in nodes]), middle([resident_mib(pids[which]) for which in nodes])
            said.append(f"a node that {role} takes {share:.1%} of a core and {memory:.0f} MiB")
    return "; ".join(said)


def middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def spent(pid: int) -> float:
    """Returns the seconds of the processor that a process has used."""
    words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(int(word) for word in words[11:13]) / 100


def resident_mib(pid: int) -> float:
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024
