"""A cluster of nodes with addresses of their own for benches, and what stands beside them in the same namespaces."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent / "tests/sdk"))

from harness import Client, client_python, wait_for  # noqa: E402
from partner import Partner  # noqa: E402
from scenarios.cluster import Cluster, make_seed  # noqa: E402
from scenarios.network import Placed, run  # noqa: E402
from usage import by_processes  # noqa: E402

NODES = (1, 2, 3)
# So that scenarios may be played beside it.
NETWORK = 7
APP = "shoal-bench-fleet"
# Calls move soon after nodes came or went: waiting for that is no part of any figure.
CONFIG = """
copies = {copies}
[calls]
settle_seconds = 2
[repair]
after_seconds = 10
every_seconds = 1
"""


class Fleet:
    """Three nodes, labelled by their names; the first has the image of the programs."""

    def __init__(self, folder: Path, seed: Path, tool: Path, log: IO[bytes], progress: Callable[[str], None], copies: int):
        self.folder, self.tool, self.log, self.progress, self.copies = folder, tool, log, progress, copies
        make_seed(seed)
        self.cluster = Cluster(folder, seed, network=NETWORK, config=CONFIG.format(copies=copies))
        self.partners: list[Partner] = []
        self.etcd: list[subprocess.Popen[bytes]] = []
        self.client: Client | None = None
        self.files = 0
        try:
            for which in NODES[1:]:
                self.cluster.join(which)
            for which in NODES:
                self.cluster.nodes[1].shoal("node", "label", f"node-{which}", f"region=node-{which}")
            self.client = self.cluster.client()
            self.cluster.settled()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends all of it."""
        for partner in self.partners:
            partner.close(5)
        self._stop_etcd()
        self.cluster.close()

    def node(self, which: int) -> Placed:
        return self.cluster.nodes[which]

    def deploy(self, file: str, app: str, **environment: str) -> None:
        """Deploys a program through the first node."""
        assert self.client is not None
        self.progress(f"deploying {file}")
        self.client.modal("deploy", "--name", app, str(HERE / file), cwd=HERE, environment=environment).ok(1800)

    @contextmanager
    def program(self, keeps: bool = True) -> Iterator[None]:
        """Has the functions of fleet_program.py deployed for the time of a block; some of them keep containers, if they are to."""
        cores = str(os.cpu_count() or 1)
        self.deploy("fleet_program.py", APP, SHOAL_BENCH_CORES=cores, SHOAL_BENCH_KEEPS="yes" if keeps else "no")
        try:
            yield
        finally:
            self.stop_app(APP)

    def stop_app(self, app: str) -> None:
        assert self.client is not None
        self.client.stop_app(app)
        wait_for(f"the containers of {app} to end", lambda: not self.cluster.ask("task", "list"), 120, every=0.5)

    def caller(self, which: int, app: str) -> Partner:
        """Starts a client process towards a node."""
        client = self.cluster.client(self.node(which).url)
        words = [str(client_python()), str(HERE / "caller.py"), app]
        self.partners.append(Partner(f"the client of node {which}", words, client.environment(), self.log))
        return self.partners[-1]

    def homes(self, app: str) -> dict[str, int]:
        """Returns at which node the calls of each function of an app are at home."""
        found = {}
        for function in self.cluster.ask("explain", app)["parts"]:
            for sentence in function["says"]:
                for which in NODES:
                    if f"at home at node node-{which}" in sentence:
                        found[function["name"]] = which
        return found

    def workers(self, tag: str) -> list[int]:
        """Returns on which nodes a function has containers."""
        rows = [row for row in self.cluster.ask("task", "list") if row["function"] == tag]
        return [which for row in rows for which in NODES if f"node-{which}" in json.dumps(row)]

    @contextmanager
    def etcd_beside(self) -> Iterator[list[str]]:
        """Has three members of Debian's etcd beside the nodes, with data on the same disk; yields where they answer."""
        work = self.folder / "etcd"
        work.mkdir()
        try:
            yield self._start_etcd(work)
        finally:
            self._stop_etcd()
            shutil.rmtree(work)

    def _stop_etcd(self) -> None:
        for member in self.etcd:
            member.kill()
            member.wait(10)
        self.etcd.clear()

    def _start_etcd(self, work: Path) -> list[str]:
        subprocess.run(["apt-get", "download", "-q", "etcd-server"], cwd=work, check=True, stdout=self.log, stderr=self.log, timeout=120)
        (package,) = work.glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", str(package), str(work)], check=True, timeout=60)
        network = self.cluster.network
        peers = ",".join(f"member-{which}=http://{network.address(which)}:2380" for which in NODES)
        for which in NODES:
            address = network.address(which)
            words = [
                "nsenter", f"--net=/run/netns/{network.namespace(which)}", str(work / "usr/bin/etcd"), "--name", f"member-{which}",
                "--data-dir", str(work / f"data-{which}"), "--initial-cluster", peers, "--initial-cluster-state", "new",
                "--listen-peer-urls", f"http://{address}:2380", "--initial-advertise-peer-urls", f"http://{address}:2380",
                "--listen-client-urls", f"http://{address}:2379", "--advertise-client-urls", f"http://{address}:2379",
            ]  # fmt: skip
            self.etcd.append(subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log))
        urls = [f"http://{network.address(which)}:2379" for which in NODES]
        # The first that is accepted says that they lead and follow.
        wait_for("etcd to take writes", lambda: self._tries(["writes", "--what", "etcd", "--prefix", "try", "--clients", "1", "--seconds", "1", "--url", urls[0]]), 60, every=1)  # fmt: skip
        return urls

    def _tries(self, words: list[str]) -> bool:
        return subprocess.run([str(self.tool), *words], stdout=self.log, stderr=self.log, timeout=60).returncode == 0

    def tool_line(self, *words: str, within: int | None = None) -> dict[str, Any]:
        """Runs a part of the tool, in the namespace of a node if one is said, and returns its last line."""
        place = ["nsenter", f"--net=/run/netns/{self.cluster.network.namespace(within)}"] if within else []
        done = subprocess.run([*place, str(self.tool), *words], stdout=subprocess.PIPE, stderr=self.log, text=True, timeout=300)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join([self.tool.name, *words])} ended with {done.returncode}")
        return json.loads(done.stdout.splitlines()[-1])

    def set_mtu(self, mtu: int) -> None:
        """Sets the largest packet between the nodes."""
        network = self.cluster.network
        for which in NODES:
            network.within(which, "ip", "link", "set", "eth0", "mtu", str(mtu))
            run("ip", "link", "set", network.namespace(which), "mtu", str(mtu))
        run("ip", "link", "set", network.bridge, "mtu", str(mtu))

    def copy(self, file: Path, source: int, target: int) -> float:
        """Copies a file from one node's namespace to another's by TLS over TCP, and returns how long that took, in seconds.

        The copy stays until the bench ends: its memory would be taken for the next one, while a node takes memory that nobody used, and
        in a virtual machine that costs several times as much.
        """
        self.files += 1
        certificate, to = self.folder / f"copy-{self.files}.pem", self.folder / f"copy-{self.files}"
        listen = f"{self.cluster.network.address(source)}:{9000 + self.files % 1000}"
        words = [
            "nsenter", f"--net=/run/netns/{self.cluster.network.namespace(source)}", str(self.tool), "copy-serve",
            "--listen", listen, "--file", str(file), "--certificate", str(certificate),
        ]  # fmt: skip
        serving = Partner("the server of a copy", words, os.environ.copy(), self.log)
        try:
            serving.answer(30)
            return self.tool_line("copy-fetch", "--from", listen, "--certificate", str(certificate), "--to", str(to), within=target)["seconds"]
        finally:
            serving.process.kill()
            serving.process.wait(10)

    def servers_cpu_seconds(self) -> float:
        """Returns the CPU time that the nodes and what stands beside them have used."""
        pids = [pid for which in NODES for pid in (self.node(which).keeper.pid, self.node(which).child())]  # type: ignore[union-attr]
        return by_processes([*pids, *(member.pid for member in self.etcd)]).cpu_seconds

    def image_of(self, app: str) -> dict[str, Any]:
        """Returns the image of an app's functions, as the node lists it."""
        return next(image for image in self.cluster.ask("image", "list") if any(use["app"] == app for use in image["used_by"]))

    def settle(self, seconds: float = 5) -> None:
        """Waits until the cluster is whole, and a little longer."""
        self.cluster.settled()
        time.sleep(seconds)
