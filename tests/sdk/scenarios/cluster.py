"""A cluster whose nodes may be lost, cut off, slowed down, and the clients that use it meanwhile."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from harness import PROGRAMS, Client, Door, Node, Running, Token, copy_folder, wait_for

from .network import Network, Placed

# Calls move soon, and what a lost node leaves is taken over soon: the waits are those of the rules, not of patience.
CONFIG = """
[containers]
sandboxes_ahead = 1
[calls]
settle_seconds = 2
[cluster]
replace_voter_seconds = 60
[repair]
after_seconds = 10
every_seconds = 1
"""
# How long a cluster may take until all nodes are there, have led and followed, and calls have their copies, in seconds; and for each of its
# nodes besides, which are all on the cores of this machine.
SETTLE_SECONDS, SETTLE_SECONDS_EACH = 120, 10


class Cluster:
    """Nodes of one cluster by their numbers from 1 on. The first founds it, from a folder that has the image of the programs."""

    def __init__(self, folder: Path, seed: Path, network: int = 0, binary: Path | None = None, config: str = CONFIG):
        self.folder, self.network, self.binary, self.config = folder, Network(network), binary, config
        self.nodes: dict[int, Placed] = {}
        self.clients: list[Client] = []
        self.doors: list[Door] = []
        founder = self.place(1)
        copy_folder(seed, founder.data)
        founder.start()
        self.token: Token = founder.create_token()

    def grow(self, nodes: int) -> None:
        """Lets nodes join until there are so many, one after the other."""
        began = time.monotonic()
        for which in range(len(self.nodes) + 1, nodes + 1):
            self.join(which)
        self.settled()
        print(f"{nodes} nodes are a cluster within {time.monotonic() - began:.1f} s", flush=True)

    def place(self, which: int) -> Placed:
        """Makes a node that does not run yet."""
        node = Placed(self.network, which, self.folder / str(which), self.config)
        node.binary = self.binary or node.binary
        self.nodes[which] = node
        return node

    def join(self, which: int, by: int = 1) -> None:
        """Starts a new node as a member."""
        # Whoever votes has the key that lets others in, once it was given it.
        made = wait_for("a token to join", lambda: self.nodes[by].shoal("token", "create", "--node", "--json", check=False), 30, every=0.5)
        self.place(which).start(*json.loads(made.stdout)["join"].split()[2:])

    def remove(self, which: int, by: int) -> None:
        """Takes a node out for good, with all that it has."""
        self.nodes[by].shoal("node", "remove", f"node-{which}")
        node = self.nodes.pop(which)
        node.stop()
        self.network.remove(which)

    def running(self) -> dict[int, Placed]:
        return {which: node for which, node in self.nodes.items() if node.keeper is not None and node.keeper.poll() is None}

    def ask(self, *words: str) -> Any:
        """Returns what the first node says that answers."""
        said = ""
        for node in self.running().values():
            try:
                done = node.shoal(*words, "--json", check=False, seconds=15)
            except subprocess.TimeoutExpired:
                continue
            if done.returncode == 0:
                return json.loads(done.stdout)
            said = done.stderr
        raise AssertionError(f"no node answers `shoal {' '.join(words)}`: {said}")

    def leader(self) -> int:
        """Returns the node that leads."""

        def look() -> int | None:
            name = self.ask("status")["leader_name"]
            return int(name.removeprefix("node-")) if name else None

        return wait_for("a leader", look, 30, every=0.2)

    def voters(self) -> set[int]:
        """Returns the nodes that vote and answer."""
        return {int(voter["name"].removeprefix("node-")) for voter in self.ask("status")["consensus"]["voters"] if voter["answers"]}

    def holders(self, app: str) -> dict[int, list[int]]:
        """Returns which nodes have the calls of each function of fleet.py, the one where they are at home first."""
        found = {}
        for function in self.ask("explain", app)["parts"]:
            for sentence in function["says"]:
                if "at home at node" in sentence:
                    found[int(function["name"].removeprefix("work"))] = [int(which) for which in re.findall(r"node-(\d+)", sentence)]
        return found

    def homes(self, app: str) -> dict[int, int]:
        """Returns at which node the calls of each function of fleet.py are at home."""
        return {function: nodes[0] for function, nodes in self.holders(app).items()}

    def workers(self) -> set[int]:
        """Returns the nodes that have containers."""
        return {int(node.removeprefix("node-")) for row in self.ask("task", "list") for node in re.findall(r"node-\d+", json.dumps(row))}

    def settled(self, app: str | None = None) -> None:
        """Waits until all nodes reach each other, one leads, and calls and all that is named have their copies: what a machine that is
        lost alone had is promised to nobody."""

        def look() -> bool:
            if {f"node-{which}" for which in self.running()} - {line["name"] for line in self.ask("node", "list") if line["connected"]}:
                return False
            status = self.ask("status")
            voters = status["consensus"]["voters"]
            good = all(voter["answers"] and voter["behind"] < 1000 for voter in voters) and status["copies_missing"] == 0
            # An even number of nodes leaves one that follows.
            enough = len(voters) == (n if (n := min(len(self.nodes), 5)) % 2 or n == 2 else n - 1)
            return good and enough and not any("copy at nowhere" in says for says in self.says(app))

        wait_for("the cluster to settle", look, SETTLE_SECONDS + SETTLE_SECONDS_EACH * len(self.nodes), every=0.5)

    def says(self, app: str | None) -> list[str]:
        return [says for part in self.ask("explain", app)["parts"] for says in part["says"]] if app else []

    def deploy(self, app: str, containers: int = 0) -> None:
        """Deploys fleet.py, each of its functions with at most so many containers if that is said."""
        most = {"FLEET_CONTAINERS": str(containers)} if containers else {}
        self.client().modal("deploy", "--name", app, str(PROGRAMS / "fleet.py"), environment=most).ok(300)

    def client(self, url: str | None = None, node: Node | None = None) -> Client:
        """Returns client processes that come through a node, or through `shoal connect`."""
        one = Client(node or self.nodes[min(self.nodes)], self.token, self.folder / f"client-{len(self.clients)}")
        if url is not None:
            environment = one.environment
            one.environment = lambda: environment() | {"MODAL_SERVER_URL": url}  # type: ignore[method-assign]
        self.clients.append(one)
        return one

    def door(self) -> Door:
        """Opens a way to whichever node is there."""
        self.doors.append(Door(*self.nodes.values()))
        return self.doors[-1]

    def close(self) -> None:
        """Ends all of it."""
        for client in self.clients:
            client.close()
        for door in self.doors:
            door.close()
        for which, node in self.nodes.items():
            self.network.heal(which)
            if which in self.running():
                with_child(node, signal.SIGCONT)
                node.keeper.send_signal(signal.SIGTERM)  # type: ignore[union-attr]
        for node in self.nodes.values():
            try:
                node.stop()
            except AssertionError as error:
                print(error)
        self.network.close()

    def each(self, what: Callable[[Placed], Any], *which: int) -> None:
        """Does the same with several nodes at once."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(what, [self.nodes[number] for number in which or self.nodes]))


def with_child(node: Placed, number: signal.Signals) -> None:
    """Sends a signal to the node below a keeper, if there is one."""
    try:
        os.kill(node.child(), number)
    except (AssertionError, ProcessLookupError):
        pass


class Load:
    """A client that asks for much, and what it was told."""

    def __init__(self, client: Client, app: str):
        self.running: Running = client.start(str(PROGRAMS / "fleet_load.py"), app)

    def facts(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.running.text("stdout").splitlines() if line.startswith("{")]

    def under_way(self, seconds: float = 120) -> None:
        """Waits until all kinds of calls have been answered."""

        def look() -> bool:
            facts = self.facts()
            kinds = {fact["kind"] for fact in facts}
            return kinds >= {"spawned", "result", "mapped"} and len({fact["number"] for fact in facts if fact["kind"] == "answered"}) > 2

        try:
            wait_for("the load to be under way", look, seconds, every=0.2)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.running.text()[-4000:]}") from None

    def stop(self, seconds: float = 180) -> list[dict[str, Any]]:
        """Lets what was begun end, and returns all facts."""
        self.running.process.send_signal(signal.SIGTERM)
        self.running.ok(seconds)
        return self.facts()


def make_seed(folder: Path, binary: Path | None = None) -> None:
    """Makes a data folder in which the image of the programs is built, unless it is there."""
    if folder.exists():
        return
    unfinished = folder.with_name(f"{folder.name}-unfinished")
    node = Node(unfinished)
    node.binary = binary or node.binary
    node.start()
    try:
        client = Client(node, node.create_token(), folder.parent / "seed-client")
        client.deploy("fleet.py", "seed", seconds=600)
        # The first call makes what all containers begin with.
        client.start("-c", "import modal; modal.Function.from_name('seed', 'work0').remote(1)").ok(300)
        client.stop_app("seed")
        client.close()
    finally:
        node.stop()
    unfinished.rename(folder)

