"""Nodes with addresses of their own on one machine, and what can happen to the wires between them.

Each node is in a network namespace with one end of a wire whose other end is in a bridge. Clients are outside, at the bridge.
What is cut or slowed down here is cut or slowed down for clients too, but for `deafen`, which is between nodes alone.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

from harness import HERE, Node, command_line, kill, node_environment, shoal_binary, threads, wait_until_none

# More than any scenario has.
NODES_MAX = 24


def run(*words: str, check: bool = True, stdin: str | None = None) -> None:
    """Runs a program of the machine; fails with what it said."""
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=30)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(words)} ended with {done.returncode}: {done.stdout}{done.stderr}")


class Network:
    """A bridge, and a namespace for each node on it. Several stand beside each other by their numbers."""

    def __init__(self, number: int = 0):
        # Not of 10.64.0.0/10, of which nodes of this machine take networks for their containers: they would disguise what passes here.
        self.bridge, self.net = f"shoalsc{number}", f"10.178.{number}"
        self.held = Path(f"/run/{self.bridge}.lock").open("w")
        try:
            fcntl.flock(self.held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AssertionError(f"another run of scenarios has the network {self.bridge} on this machine") from None
        self.wires: dict[int, subprocess.Popen[str]] = {}
        self.clear()  # What a run left that was killed.
        run("ip", "link", "add", self.bridge, "type", "bridge")
        run("ip", "address", "add", f"{self.net}.1/24", "dev", self.bridge)
        run("ip", "link", "set", self.bridge, "up")
        run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        source = f"ip saddr {self.net}.0/24 ip daddr != {self.net}.0/24 masquerade"
        rules = f"table ip {self.bridge} {{\nchain out {{\ntype nat hook postrouting priority srcnat\n{source}\n}}\n}}\n"
        run("nft", "-f", "-", stdin=rules)

    def close(self) -> None:
        """Takes away all that was made here, with what still runs there."""
        for wire in self.wires.values():
            wire.kill()
        self.clear()
        self.held.close()

    def clear(self) -> None:
        for which in range(1, NODES_MAX + 1):
            if Path("/run/netns", self.namespace(which)).exists():
                words = ["ip", "netns", "pids", self.namespace(which)]
                pids = [int(pid) for pid in subprocess.run(words, capture_output=True, text=True, timeout=30).stdout.split()]
                folders = {line[line.index("--data") + 1] for pid in pids if "--data" in (line := command_line(pid))[:-1]}
                for pid in pids:
                    kill(pid, signal.SIGKILL)
                wait_until_none(f"processes of node {which}", lambda pids=pids: [pid for pid in pids if threads(pid)], 20)
                # Its containers go on without it, in networks of their own.
                for folder in folders:
                    self.within(which, str(shoal_binary()), "cleanup", "--data", folder, check=False)
                run("ip", "netns", "del", self.namespace(which), check=False)
        run("ip", "link", "del", self.bridge, check=False)
        run("nft", "delete", "table", "ip", self.bridge, check=False)

    def namespace(self, which: int) -> str:
        return f"{self.bridge}-{which}"

    def address(self, which: int) -> str:
        return f"{self.net}.{10 + which}"

    def add(self, which: int) -> None:
        """Makes the namespace of a node, with a wire to the bridge."""
        name = self.namespace(which)
        run("ip", "netns", "add", name)
        run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "link", "set", name, "master", self.bridge, "up")
        address, way_out = f"address add {self.address(which)}/24 dev eth0", f"route add default via {self.net}.1"
        for words in ("link set lo up", address, "link set eth0 up", way_out):
            run("ip", "-n", name, *words.split())

    def remove(self, which: int) -> None:
        """Takes away the namespace of a node that has ended."""
        run("ip", "netns", "del", self.namespace(which), check=False)

    def cut(self, which: int) -> None:
        """Cuts a node off from everybody."""
        run("ip", "link", "set", self.namespace(which), "down")

    def deafen(self, which: int, *to: int) -> None:
        """Lets a node hear nothing more of some others, which go on hearing it."""
        self.within(which, "nft", "add", "table", "ip", "scenario")
        self.within(which, "nft", "add", "chain", "ip", "scenario", "deaf", "{ type filter hook input priority -10; }")
        for other in to:
            self.within(which, "nft", "add", "rule", "ip", "scenario", "deaf", "ip", "saddr", self.address(other), "drop")

    def slow(self, which: int, delay_ms: int, loss_percent: int) -> None:
        """Lets packets to a node take so long, and loses some of them."""
        self.within(which, sys.executable, str(HERE / "scenarios/wire.py"), "eth0")
        words = [sys.executable, str(HERE / "scenarios/wire.py"), self.namespace(which), self.bridge, str(delay_ms), str(loss_percent)]
        wire = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        self.wires[which] = wire
        if not select.select([wire.stdout], [], [], 30)[0] or wire.stdout.readline() != "ready\n":
            raise AssertionError(f"the slow wire of node {which} is not there")

    def heal(self, which: int) -> None:
        """Makes a node reached and hearing as before."""
        run("ip", "link", "set", self.namespace(which), "up")
        if wire := self.wires.pop(which, None):
            wire.kill()
            wire.wait()
            run("ip", "link", "set", self.namespace(which), "master", self.bridge)
        self.within(which, "nft", "delete", "table", "ip", "scenario", check=False)

    def within(self, which: int, *words: str, check: bool = True) -> None:
        run("nsenter", f"--net=/run/netns/{self.namespace(which)}", *words, check=check)


class Placed(Node):
    """A node in a namespace of its own."""

    def __init__(self, network: Network, which: int, data: Path, config: str, environment: dict[str, str] | None = None):
        super().__init__(data, config=config, environment=environment)
        self.network, self.which, self.name = network, which, f"node-{which}"
        self.api_port, self.web_port = 7470, 7480
        network.add(which)

    @property
    def url(self) -> str:
        return f"http://{self.network.address(self.which)}:{self.api_port}"

    def begin(self, *more: str) -> None:
        """Starts the keeper in the namespace and waits for nothing."""
        self.data.mkdir(parents=True, exist_ok=True)
        file = self.data.parent / f"{self.data.name}.toml"
        file.write_text(self.config or "")
        address = self.network.address(self.which)
        # Not by ip netns exec, which hides the cgroups. nsenter becomes the keeper.
        arguments = [
            "nsenter", f"--net=/run/netns/{self.network.namespace(self.which)}",
            str(self.binary), "start", "--data", str(self.data), "--config", str(file), "--name", self.name,
            "--api", f"{address}:{self.api_port}", "--web", f"{address}:{self.web_port}", "--advertise", address, *more,
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self.keeper = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=node_environment(self.binary) | self.environment, start_new_session=True,
            )  # fmt: skip

    def pause(self, signal_number: int) -> None:
        """Sends a signal to the node itself, as SIGSTOP and SIGCONT are, not to its keeper."""
        os.kill(self.child(), signal_number)
