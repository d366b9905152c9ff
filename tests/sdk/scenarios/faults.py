"""What happens to a cluster: each scenario is a function that gets a world under load and leaves the cluster whole again."""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import NODE_START_SECONDS, wait_for

from .cluster import CONFIG
from .network import Placed
from .world import World


@dataclass(frozen=True)
class Scenario:
    """`play` gets a world under load. `short` ones are a few seconds, and run in every test.

    One with `nodes` needs a cluster of its own with that many, `config`, and an app with at most so many `containers` a function."""

    name: str
    says: str
    play: Callable[[World], None]
    short: bool
    registry: bool = True
    nodes: int = 0
    config: str = CONFIG
    containers: int = 0


SCENARIOS: dict[str, Scenario] = {}


def scenario(short: bool = False, registry: bool = True, **own: Any) -> Callable[[Callable[[World], None]], Callable[[World], None]]:
    """Enters a function among the scenarios, under its name and with the first line of what it says of itself."""

    def enter(play: Callable[[World], None]) -> Callable[[World], None]:
        name = play.__name__
        SCENARIOS[name] = Scenario(name, (play.__doc__ or "").splitlines()[0], play, short, registry, **own)
        return play

    return enter


def home_of(world: World, besides: set[int]) -> tuple[int, set[int]]:
    """Returns a node where calls are at home, if there is one not in `besides`, and the functions whose calls are."""
    homes = world.cluster.homes(world.app)
    which = min(set(homes.values()) - besides or homes.values())
    return which, {number for number, at in homes.items() if at == which}


def back(world: World, which: int) -> None:
    """Starts a lost node again, and waits until all is as before."""
    world.cluster.nodes[which].start()
    world.say(f"node {which} is back")
    world.cluster.settled(world.app)
    world.say("all is as before")


def strike(world: World, which: int, role: str) -> None:
    """A machine is lost in the midst of things, and comes back."""
    numbers = {number for number, at in world.cluster.homes(world.app).items() if at == which}
    world.excuse(which)
    world.fault(f"node {which}, {role}, is lost", (lambda fact: fact["number"] in numbers) if numbers else lambda fact: True)
    world.cluster.nodes[which].lose()
    world.progress()
    back(world, which)


@scenario(short=True)
def lost_home(world: World) -> None:
    """The machine is lost where calls are at home, and comes back."""
    which, _ = home_of(world, {world.cluster.leader()})
    strike(world, which, "home of calls")


@scenario()
def lost_leader(world: World) -> None:
    """The machine is lost that leads, and comes back."""
    strike(world, world.cluster.leader(), "the leader")


@scenario()
def lost_worker(world: World) -> None:
    """A machine is lost that runs containers, and comes back."""
    workers = world.cluster.workers() or set(world.cluster.nodes)
    which = world.random.choice(sorted(workers - {world.cluster.leader()} or workers))
    strike(world, which, "which runs containers")


@scenario()
def crashed(world: World) -> None:
    """The process of each node dies in turn; its keeper starts it again at once."""
    order = sorted(world.cluster.nodes)
    world.random.shuffle(order)
    for which in order:
        node = world.cluster.nodes[which]
        world.fault(f"the process of node {which} dies")
        old = node.kill_child()
        node.wait_reborn(old)
        world.progress()
        world.cluster.settled(world.app)


@scenario(short=True)
def rolling(world: World) -> None:
    """All nodes are restarted in order, one after the other, as for an upgrade; clients of the others do not notice."""
    order = sorted(world.cluster.nodes)
    world.random.shuffle(order)
    for which in order:
        restart(world, which)


def restart(world: World, which: int, binary: Path | None = None) -> None:
    node = world.cluster.nodes[which]
    world.excuse(which)
    world.fault(f"node {which} is stopped")
    node.stop()
    if binary is not None:
        node.binary = binary
    node.start()
    world.say(f"node {which} is back")
    world.cluster.settled(world.app)
    world.progress()


@scenario(short=True)
def parted(world: World) -> None:
    """The leader is cut off from everybody for 8 s, and is back."""
    which = world.cluster.leader()
    world.excuse(which)
    world.fault(f"node {which}, the leader, is cut off")
    world.cluster.network.cut(which)
    world.progress()
    world.pass_time(8)
    world.cluster.network.heal(which)
    world.say(f"node {which} is reached again")
    world.cluster.settled(world.app)
    world.progress()


@scenario()
def deaf(world: World) -> None:
    """The leader hears nobody, and is heard: a wire that is broken in one way."""
    which = world.cluster.leader()
    one_way(world, {which: [other for other in world.cluster.nodes if other != which]}, f"node {which}, the leader, hears nobody")


@scenario()
def mute(world: World) -> None:
    """The leader is heard by nobody, and hears."""
    which = world.cluster.leader()
    one_way(world, {other: [which] for other in world.cluster.nodes if other != which}, f"node {which}, the leader, is heard by nobody")


@scenario()
def half_parted(world: World) -> None:
    """Two nodes do not reach each other, while both reach the third."""
    one, other = world.random.sample(sorted(world.cluster.nodes), 2)
    one_way(world, {one: [other], other: [one]}, f"nodes {one} and {other} do not reach each other")


@scenario()
def half_deaf(world: World) -> None:
    """One node does not hear one other, and all else is well."""
    one, other = world.random.sample(sorted(world.cluster.nodes), 2)
    one_way(world, {one: [other]}, f"node {one} does not hear node {other}")


def one_way(world: World, deaf_to: dict[int, list[int]], what: str, seconds: float = 10) -> None:
    # A node without the others answers nobody for a while, who asks it directly; the road through a door goes elsewhere.
    for which in world.cluster.nodes:
        world.excuse(which)
    world.fault(what)
    for which, others in deaf_to.items():
        world.cluster.network.deafen(which, *others)
    world.progress()
    world.pass_time(seconds)
    for which, node in world.cluster.nodes.items():
        reached = [one for one in world.cluster.nodes if one != which and one not in deaf_to.get(which, []) and which not in deaf_to.get(one, [])]
        if node.healthy() != bool(reached):
            told = "may" if node.healthy() else "should not"
            world.report.broken.append(f"health: node {which}, which reaches {reached or 'nobody'}, says that clients {told} come")
    for which in deaf_to:
        world.cluster.network.heal(which)
    world.say("all hear each other again")
    world.cluster.settled(world.app)
    wait_for("all nodes to take clients", lambda: all(node.healthy() for node in world.cluster.nodes.values()), 10)
    world.progress()


@scenario()
def slow(world: World) -> None:
    """All wires take 200 ms and lose 5 % of what they carry, for 20 s."""
    world.fault("all wires are slow, and lose packets")
    for which in world.cluster.nodes:
        world.cluster.network.slow(which, 200, 5)
    world.progress(120)
    world.pass_time(20)
    for which in world.cluster.nodes:
        world.cluster.network.heal(which)
    world.say("all wires are good again")
    world.cluster.settled(world.app)
    world.progress()


@scenario()
def paused(world: World) -> None:
    """The leader stands still for 30 s, as a machine that is moved does, and goes on."""
    which = world.cluster.leader()
    node = world.cluster.nodes[which]
    world.excuse(which)
    world.fault(f"node {which}, the leader, stands still")
    child = node.child()
    os.kill(child, signal.SIGSTOP)
    try:
        world.progress()
        world.pass_time(30 - min(25, time.time() - world.faults[-1][0]))
    finally:
        os.kill(child, signal.SIGCONT)
    world.say(f"node {which} goes on")
    world.cluster.settled(world.app)
    world.progress()


@scenario()
def all_at_once(world: World) -> None:
    """All nodes are killed at once, as by a power cut in the house, and started again."""
    for which in world.cluster.nodes:
        world.excuse(which)
    world.all_roads_gone()
    world.fault("all nodes are lost at once")
    world.cluster.each(Placed.lose)
    world.pass_time(2)
    world.say("all nodes are started")
    world.cluster.each(Placed.begin)
    world.cluster.each(lambda node: node.wait_ready(NODE_START_SECONDS))
    world.say("all nodes answer")
    world.progress(120)
    world.cluster.settled(world.app)


@scenario()
def come_and_go(world: World) -> None:
    """Two nodes join and two are removed, under load, the leader among them."""
    by = min(world.cluster.nodes)
    first = max(world.cluster.nodes) + 1
    for which in (first, first + 1):
        world.fault(f"node {which} joins")
        world.cluster.join(which, by)
        world.cluster.settled(world.app)
        world.progress()
    for goes in (world.cluster.leader(), first + 1):
        by = min(which for which in world.cluster.nodes if which != goes)
        if goes not in world.cluster.nodes:
            continue
        world.excuse(goes)
        world.fault(f"node {goes} is removed")
        world.cluster.remove(goes, by)
        world.progress()
        world.cluster.settled(world.app)


@scenario()
def broken_packs(world: World) -> None:
    """The packs of a node's chunks are damaged while it is down: what runs there gets its bytes from others."""
    which = max(world.cluster.nodes)
    node = world.cluster.nodes[which]
    world.excuse(which)
    world.fault(f"node {which} is stopped")
    node.stop()
    damaged = damage(node.data / "chunks", world.random)
    world.say(f"{damaged} bits of the packs of node {which} are flipped")
    node.start()
    others = [other for other in world.cluster.nodes if other != which]
    for other in others:
        node.shoal("node", "drain", f"node-{other}")
    try:
        world.progress(120)
        wait_for(f"containers on node {which}", lambda: which in world.cluster.workers(), 60, every=0.5)
    finally:
        for other in others:
            node.shoal("node", "undrain", f"node-{other}")
    # The first look finds and drops what is damaged and was not read yet; then copies of it are brought.
    found = node.shoal("store", "check", check=False, seconds=180)
    world.say(f"{found.stdout.count('damaged: ')} damaged chunks were left")
    node.shoal("store", "repair", seconds=180)
    again = node.shoal("store", "check", check=False, seconds=180)
    if again.returncode != 0:
        world.report.broken.append(f"repaired: the store is still damaged: {again.stdout[-500:]}{again.stderr[-500:]}")
    world.cluster.settled(world.app)


def damage(folder: Path, drawn: random.Random, every: int = 256 << 10) -> int:
    """Flips a bit in each stretch of the packs of a store that nobody has open; returns how many."""
    flipped = 0
    for pack in sorted(folder.rglob("*")):
        if not pack.is_file() or pack.stat().st_size < every or "index" in str(pack) or "kv" in pack.parts:
            continue
        with pack.open("r+b") as file:
            for start in range(0, pack.stat().st_size - every, every):
                at = start + drawn.randrange(every)
                file.seek(at)
                byte = file.read(1)
                file.seek(at)
                file.write(bytes([byte[0] ^ 1]))
                flipped += 1
    return flipped


@scenario()
def full_disk(world: World) -> None:
    """The disk of a node is full for 15 s, and has room again."""
    which, _ = home_of(world, {1})
    if which == 1:
        which = max(world.cluster.nodes)
    node = world.cluster.nodes[which]
    world.excuse(which)
    world.say(f"node {which} gets a disk of its own")
    with own_disk(world, which):
        world.cluster.settled(world.app)
        world.fault(f"the disk of node {which} is full")
        ballast = node.data / "ballast"
        fill(ballast)
        world.progress()
        world.pass_time(15)
        fill(ballast)
        ballast.unlink()
        world.say(f"the disk of node {which} has room again")
        world.progress()
        world.cluster.settled(world.app)


def fill(file: Path) -> None:
    """Takes all that is left on a disk."""
    with file.open("ab", buffering=0) as out:
        piece = bytes(1 << 20)
        for size in (1 << 20, 4096):
            try:
                while True:
                    out.write(piece[:size])
            except OSError:
                pass


class own_disk:
    """Puts the data folder of a node on a small disk of its own, for a block."""

    def __init__(self, world: World, which: int, megabytes: int = 1500):
        self.world, self.which, self.node = world, which, world.cluster.nodes[which]
        self.image = self.node.data.parent / f"disk-{which}"
        self.megabytes = megabytes

    def __enter__(self) -> None:
        data = self.node.data
        self.node.stop()
        aside = data.with_name(f"{data.name}-aside")
        data.rename(aside)
        data.mkdir()
        run = lambda *words: subprocess.run(words, check=True, capture_output=True, timeout=120)  # noqa: E731
        with self.image.open("wb") as file:
            file.truncate(self.megabytes << 20)
        run("mkfs.ext4", "-q", "-F", "-m", "0", str(self.image))
        run("mount", "-o", "loop", str(self.image), str(data))
        run("cp", "-a", "--sparse=always", f"{aside}/.", str(data))
        run("rm", "-rf", str(aside))
        self.node.start()

    def __exit__(self, *_: object) -> None:
        data = self.node.data
        self.node.stop()
        aside = data.with_name(f"{data.name}-aside")
        run = lambda *words: subprocess.run(words, check=True, capture_output=True, timeout=120)  # noqa: E731
        run("cp", "-a", "--sparse=always", str(data), str(aside))
        run("umount", "--lazy", str(data))
        data.rmdir()
        aside.rename(data)
        run("rm", "-rf", str(data / "lost+found"))
        self.image.unlink()
        self.node.start()


@scenario()
def wrong_clocks(world: World) -> None:
    """The clocks of nodes jump: the leader's an hour ahead, then two hours back, another's a day ahead, and are right again."""
    library, file = build_clock(world.cluster.folder), {}
    for which, node in world.cluster.nodes.items():
        file[which] = node.data.parent / f"clock-{which}"
        file[which].write_bytes(struct.pack("q", 0))
        node.environment = node.environment | {"LD_PRELOAD": str(library), "SCENARIO_CLOCK": str(file[which])}
    try:
        for which in world.cluster.nodes:
            restart(world, which)
        leader = world.cluster.leader()
        other = next(which for which in world.cluster.nodes if which != leader)
        for which, seconds in ((leader, 3600), (leader, -3600), (other, 86400), (leader, 0), (other, 0)):
            world.fault(f"the clock of node {which} is wrong by {seconds} s")
            file[which].write_bytes(struct.pack("q", seconds))
            world.pass_time(5)
            world.progress()
    finally:
        for node in world.cluster.nodes.values():
            node.environment = {name: value for name, value in node.environment.items() if name not in ("LD_PRELOAD", "SCENARIO_CLOCK")}
    for which in world.cluster.nodes:
        restart(world, which)


def build_clock(folder: Path) -> Path:
    library = folder / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True, timeout=60)
    return library


@scenario()
def upgrade(world: World) -> None:
    """The nodes run the release of $SHOAL_OLD_BIN, and are upgraded one by one."""
    world.say(f"the old release is {world.cluster.nodes[1].binary}")
    for which in sorted(world.cluster.nodes):
        restart(world, which, world.newer)

