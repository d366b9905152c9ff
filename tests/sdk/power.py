"""Power cuts of a whole node: it runs under `strace`, and its data folder is made again as a power cut would leave it.

`Traced` is a node whose changes of its data folder are written down while it runs, in the order in which they took effect.
`Replay` drives `power-cut-replay` (tests/src/power_cut says how), which makes the folder as of random moments: what was
synced, and a random part of what was not.

The node's own process is traced, not the programs that it starts: `strace -b execve` lets go of those. What they write into
the data folder is left out here, with all that a node makes anew at each start.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness import NODE_START_SECONDS, NODE_STOP_SECONDS, REPOSITORY, Node, children, command_line, node_environment

# What the replay knows nothing of, and leaves as it was before the trace.
LEFT_OUT = (
    "run",  # The lock, sockets, and what tasks find of their own: made anew.
    "trees",  # A mount point.
    "runtime",  # The containers of this start: overlays, and runsc's own notes.
    "images/work",  # Emptied at each start.
    "images/bases",  # Emptied at each start.
    "images/cache",  # What builds keep for each other, written by them.
    "calls.streams",  # Removed at each start.
    "zygotes",  # Snapshots that runsc writes; a cache.
)
# Which start of the machine this is; a node compares it with the one that its folder knows.
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# The longest write that is understood, in bytes.
WRITE_BYTES_MAX = 32 << 20
# Puts two descriptors at 3 and 4, where the node looks for its sockets, and becomes the command.
HAND_OVER = """
import os, sys
fds = [os.dup(int(fd)) for fd in sys.argv[1:3]]
high = [fd if fd > 4 else __import__("fcntl").fcntl(fd, 0, 10) for fd in fds]
for fd, to in zip(high, (3, 4)):
    os.dup2(fd, to)
os.execvp(sys.argv[3], sys.argv[3:])
"""


def replay_binary() -> Path:
    """Returns the newest build of `power-cut-replay` in this checkout."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))
    built = [path for kind in ("release", "debug") if (path := target / kind / "power-cut-replay").exists()]
    if not built:
        raise FileNotFoundError(f"no power-cut-replay under {target}: run `cargo build -p shoal-tests --bin power-cut-replay`")
    return max(built, key=lambda path: path.stat().st_mtime)


class Traced(Node):
    """A node under strace, without a keeper: `keeper` is strace here, and its child the node."""

    def __init__(self, data: Path, trace: Path, environment: dict[str, str] | None = None):
        super().__init__(data, environment=environment)
        self.trace = trace

    def start(self) -> None:
        """Starts the node on sockets that it is handed, and returns when it answers."""
        calls = subprocess.run([replay_binary(), "--calls"], check=True, capture_output=True, text=True).stdout.strip()
        sockets = [socket.create_server(address) for address in (("0.0.0.0", self.api_port), ("127.0.0.1", self.web_port))]
        # No --seccomp-bpf: its filter would stay in the programs that are let go.
        strace = ["strace", "-f", "-b", "execve", "-y", "-xx", "-ttt", "-s", str(WRITE_BYTES_MAX), "-e", "signal=none"]
        arguments = [
            str(self.binary), "start", "--data", str(self.data),
            "--api", f"0.0.0.0:{self.api_port}", "--web", f"127.0.0.1:{self.web_port}",
        ]  # fmt: skip
        handed = {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "api:web", "LISTEN_PID": "0"}
        with self.log.open("ab") as log:
            self.keeper = subprocess.Popen(
                [sys.executable, "-c", HAND_OVER, *(str(one.fileno()) for one in sockets),
                 *strace, "-e", f"trace={calls}", "-o", str(self.trace), *arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=node_environment(self.binary) | self.environment | handed,
                pass_fds=[one.fileno() for one in sockets], start_new_session=True,
            )  # fmt: skip
        for one in sockets:
            one.close()
        self.wait_ready(NODE_START_SECONDS)
        self.tag = self.json("status")["tag"]

    def stop(self) -> None:
        """Stops the node in order; strace ends with it."""
        if self.keeper is None:
            return
        keeper, self.keeper = self.keeper, None
        for pid in children(keeper.pid):
            if command_line(pid):
                os.kill(pid, signal.SIGTERM)
        try:
            keeper.wait(NODE_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            for pid in [*children(keeper.pid), keeper.pid]:
                os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"the traced node did not stop in {NODE_STOP_SECONDS} s:\n{self.log_tail()}") from None


@dataclass(frozen=True)
class Cut:
    """A power cut: at which event of how many, and before when (µs) what was told must be there."""

    event: int
    of: int
    due_before: int


@dataclass(frozen=True)
class Recording:
    """What a traced node did in its folder, and what clients were told meanwhile."""

    trace: Path
    folder: Path
    before: Path
    facts: list[dict]

    @contextmanager
    def cuts(self, count: int, seed: int, *options: str) -> Iterator[Iterator[tuple[Cut, list[dict]]]]:
        """Gives power cuts, each with the facts that must hold, after it has put the folder as it would be in its place."""
        told = self.trace.with_suffix(".told")
        told.write_text("".join(f"{fact['at']}\n" for fact in self.facts))
        left_out = [word for name in LEFT_OUT for word in ("--left-out", name)]
        replay = subprocess.Popen(
            [str(replay_binary()), "--trace", str(self.trace), "--folder", str(self.folder), "--before", str(self.before),
             *left_out, "--acknowledged", str(told), "--count", str(count), "--seed", str(seed), *options],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

        def each() -> Iterator[tuple[Cut, list[dict]]]:
            for _ in range(count):
                shutil.rmtree(self.folder, ignore_errors=True)
                assert replay.stdin is not None and replay.stdout is not None and replay.stderr is not None
                print(self.folder, file=replay.stdin, flush=True)
                if not (line := replay.stdout.readline()):
                    raise AssertionError(f"power-cut-replay ended: {replay.stderr.read()}")
                cut = Cut(**json.loads(line))
                start_machine_anew(self.folder)
                yield cut, [fact for fact in self.facts if fact["at"] < cut.due_before]

        try:
            yield each()
        finally:
            replay.kill()
            replay.communicate(timeout=10)


def start_machine_anew(data: Path) -> None:
    """Makes the folder one that another start of the machine has used, as it is after a power cut."""
    boot = data / "calls.boot"
    if boot.exists() and boot.read_bytes() == BOOT_ID.read_bytes():
        boot.write_text("00000000-0000-0000-0000-000000000000\n")
