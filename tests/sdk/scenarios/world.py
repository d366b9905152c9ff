"""One run of a scenario: a cluster under load, what happens to it and when, what must hold in the end, and what it cost.

accepted_survives   each call that was accepted has its right result, through another node than took it
one_outcome         a result that was told is the result, through every node
no_error            no client sees an error where a road is left (a load through `shoal connect` and one through a node that is spared)
linearizable        what clients saw of names of the registry, through all nodes, can have happened one after the other
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import PROGRAMS, Running, wait_for

from .cluster import Cluster, Load
from .histories import Operation, contradiction

# As fleet.py has; importing it would make an app.
FUNCTIONS = 3
# Through how many nodes what was told is looked at in the end.
READ_THROUGH = 5
# What a load tells of what it asked for.
KINDS = ("spawned", "result", "answered", "mapped")


@dataclass
class Report:
    """What a scenario cost, in seconds by what was waited for, and what did not hold."""

    name: str
    seed: int
    figures: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def text(self) -> str:
        counts = ", ".join(f"{number} {kind}" for kind, number in self.counts.items())
        lines = [f"{self.name} (seed {self.seed}): {counts}"]
        lines += [f"  {seconds:8.2f} s  {what}" for what, seconds in self.figures.items()]
        lines += [f"  BROKEN: {what}" for what in self.broken]
        return "\n".join(lines)


class World:
    """A cluster under load, for the time of one scenario."""

    def __init__(self, cluster: Cluster, app: str, name: str, seed: int):
        self.cluster, self.app = cluster, app
        self.random = random.Random(f"{name} {seed}")
        self.report = Report(name, seed)
        self.began = time.time()
        # When all kinds of calls had been answered: what was asked before waited for its first containers.
        self.warm = self.began
        self.faults: list[tuple[float, str, Callable[[dict[str, Any]], bool]]] = []
        self.loads: list[Load] = []
        self.registry: list[tuple[int, Running]] = []
        # Clients of a node that the fault may take their way from.
        self.excused: list[Load] = []
        self.struck: set[int] = set()
        self.roads = True
        self.newer: Path | None = None

    def say(self, what: str) -> float:
        """Prints a moment of the scenario, and returns when that is."""
        now = time.time()
        print(f"  {now - self.began:7.2f} s  {what}", flush=True)
        return now

    def fault(self, what: str, needed: Callable[[dict[str, Any]], bool] = lambda fact: True) -> None:
        """Notes that something happens now to what some calls needed."""
        self.faults.append((self.say(what), what, needed))

    def excuse(self, which: int) -> None:
        """Lets clients that come through a node see errors: something happens to it."""
        self.struck.add(which)

    def all_roads_gone(self) -> None:
        """Lets every client see errors, for want of a road."""
        self.roads = False

    def add_load(self, url: str, excused: bool = False) -> Load:
        load = Load(self.cluster.client(url), self.app)
        (self.excused if excused else self.loads).append(load)
        return load

    def start(self, registry: bool) -> None:
        """Puts the cluster under load through a door, and the registry through every node."""
        self.add_load(self.cluster.door().url)
        if registry:
            prefix = f"{self.report.name}-{self.report.seed}-{int(self.began)}".replace("_", "-")
            for which, node in self.cluster.running().items():
                client = self.cluster.client(node.url)
                running = client.start(str(PROGRAMS / "registry_load.py"), prefix, f"{self.report.seed * 10 + which}")
                self.registry.append((which, running))
        for load in self.loads:
            load.under_way()
        homes, workers = self.cluster.homes(self.app), self.cluster.workers()
        self.warm = self.say(f"under load; node {self.cluster.leader()} leads, homes {homes}, containers on {workers}")

    def pass_time(self, seconds: float) -> None:
        """Lets the load go on for a while."""
        time.sleep(seconds)

    def progress(self, seconds: float = 60) -> None:
        """Waits until calls to all functions that begin from now on are answered."""
        now = time.time()

        def served(load: Load) -> bool:
            later = [fact for fact in load.facts() if fact["kind"] == "answered" and fact["at"] - fact["took"] >= now]
            return {fact["number"] for fact in later} >= set(range(FUNCTIONS))

        def look() -> bool:
            return all(served(load) for load in self.loads)

        wait_for("calls to all functions to be answered", look, seconds, every=0.1)
        self.say("calls to all functions are answered")

    def finish(self) -> Report:
        """Ends the load, when all is well again, and holds what clients were told against the cluster."""
        facts: list[dict[str, Any]] = []
        for load in [*self.loads, *self.excused]:
            told = load.stop()
            facts += told if load in self.loads else [fact for fact in told if fact["kind"] != "error"]
        self.say("the load has ended")
        operations = self.stop_registry()
        self.measure(facts)
        for fact in facts if self.roads else []:
            if fact["kind"] == "error":
                when = f"after {fact['took']:.1f} s at {fact['at'] - self.began:.1f} s"
                self.report.broken.append(f"no_error: {fact['what']} {when}: {fact['error']}")
        if self.report.broken:
            for door in self.cluster.doors:
                print(f"  what {door.url} said:", *door.log.read_text().splitlines()[-12:], sep="\n    ")
        running = sorted(self.cluster.running())
        self.check_calls(facts, *self.random.sample(running, min(len(running), READ_THROUGH)))
        self.check_histories(operations)
        self.say("all that was told has been looked at")
        return self.report

    def stop_registry(self) -> list[dict[str, Any]]:
        for _, running in self.registry:
            running.process.send_signal(signal.SIGTERM)
        told = [(which, running.ok(90).text("stdout").splitlines()) for which, running in self.registry]
        return [json.loads(line) | {"through": which} for which, lines in told for line in lines]

    def measure(self, facts: list[dict[str, Any]]) -> None:
        """Notes the longest waits since all was warm, and for each fault how long it took to the first answer to a call that came after it."""
        for kind in KINDS:
            of_kind = [fact for fact in facts if fact["kind"] == kind]
            took = sorted((fact["took"] for fact in of_kind if fact["at"] - fact["took"] >= self.warm), reverse=True)
            self.report.counts[kind] = len(of_kind)
            if took and kind != "result":
                self.report.figures[f"longest until {kind}, of {took[len(took) // 2]:.2f} in the middle"] = took[0]
        for when, what, needed in self.faults:
            later = [fact["at"] for fact in facts if fact["kind"] == "answered" and fact["at"] - fact["took"] >= when and needed(fact)]
            if later:
                self.report.figures[f"first answer after: {what}"] = min(later) - when

    def check_calls(self, facts: list[dict[str, Any]], *through: int) -> None:
        """Looks at all calls again, through each of some nodes."""
        told = self.cluster.folder / "facts"
        told.write_text("".join(json.dumps(fact) + "\n" for fact in facts))
        for which in through:
            client = self.cluster.client(self.cluster.nodes[which].url)
            said = client.start(str(PROGRAMS / "fleet_check.py"), str(told)).ok(300).text("stdout").splitlines()
            self.report.broken += [f"accepted_survives, one_outcome (read through node {which}): {line}" for line in said[:-1]]

    def check_histories(self, operations: list[dict[str, Any]]) -> None:
        names: dict[str, list[Operation]] = {}
        for one in operations:
            names.setdefault(one["name"], []).append(Operation(one["kind"], one["begin"], one["end"], one["answer"], one["id"]))
        self.report.counts["operations on names"] = len(operations)
        self.report.counts["of which lost"] = sum(one["answer"] == "lost" for one in operations)
        for which in sorted({one["through"] for one in operations}):
            through = [one for one in operations if one["through"] == which]
            if lost := [one for one in through if one["error"]]:
                print(f"  through node {which} {len(lost)} operations on names were lost; the first: {lost[0]['error']}")
            # A client that knows one node alone waits as long as that one reaches nobody.
            if took := [one["end"] - one["begin"] for one in through if one["at"] - (one["end"] - one["begin"]) >= self.warm]:
                self.report.figures[f"longest operation on a name, through node {which} alone"] = max(took)
        for name, history in names.items():
            if why := contradiction(history):
                self.report.broken.append(f"linearizable: {name}: {why}")
        errors = [one for one in operations if one["error"] and one["through"] not in self.struck]
        for one in errors:
            took = one["end"] - one["begin"]
            where = f"through node {one['through']}, begun at {one['at'] - self.began - took:.1f} s, after {took:.1f} s"
            self.report.broken.append(f"no_error: {one['kind']} of a name {where}: {one['error']}")

    def tell_why(self) -> None:
        """Prints what helps to understand why a scenario came to no end: what clients were told last, and what the nodes say."""
        for load in self.loads:
            print("the last that a client was told:", *load.facts()[-12:], load.running.text("stderr")[-2000:], sep="\n    ")
        for words in (("status",), ("explain", self.app), ("task", "list")):
            try:
                print(f"shoal {' '.join(words)}:", json.dumps(self.cluster.ask(*words))[:6000])
            except AssertionError as error:
                print(error)
        for which, node in self.cluster.nodes.items():
            marked = [line for line in node.log_tail(4000).splitlines() if " WARN " in line or " ERROR " in line]
            print(f"warnings of node {which}:", *marked[-25:], sep="\n    ")

    def close(self) -> None:
        for load in [*self.loads, *self.excused]:
            load.running.close()
        for _, running in self.registry:
            running.close()


@contextmanager
def under_load(cluster: Cluster, app: str, name: str, seed: int, registry: bool = True) -> Iterator[World]:
    """Gives a world under load, and ends what is left of it."""
    world = World(cluster, app, name, seed)
    try:
        cluster.settled(app)
        world.start(registry)
        yield world
    except AssertionError:
        world.tell_why()
        raise
    finally:
        world.close()

