"""What processes and control groups use: CPU time and memory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Used:
    """CPU time since the beginning, in seconds, and memory now, in MiB."""

    cpu_seconds: float
    memory_mib: float


def by_processes(pids: Iterable[int]) -> Used:
    """Returns what processes use: pages that they share count in part, and so do children that they have waited for."""
    pids = list(pids)
    return Used(cpu_seconds=sum(map(cpu_seconds, pids)), memory_mib=sum(map(memory_mib, pids)))


def cpu_seconds(pid: int) -> float:
    """Returns the CPU time of a process, and of children that it has waited for; none for one that is gone."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(int(word) for word in words[11:15]) / os.sysconf("SC_CLK_TCK")


def memory_mib(pid: int) -> float:
    """Returns the memory of a process, pages that it shares counted in part."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


@dataclass(frozen=True)
class ControlGroups:
    """One group for each thing that is counted; with the kernel's second interface they are the same folder."""

    cpu: Path
    memory: Path

    @staticmethod
    def make(name: str) -> ControlGroups:
        """Makes new groups."""
        groups = ControlGroups.named(name)
        for folder in groups.folders:
            folder.mkdir()
        if groups.cpu == groups.memory:
            # Children are counted where the parent says so.
            (ROOT / "cgroup.subtree_control").write_text("+cpu +memory")
        return groups

    @staticmethod
    def named(name: str) -> ControlGroups:
        """Returns the groups of a name, such as those of a node's containers."""
        if (ROOT / "cgroup.controllers").exists():
            return ControlGroups(ROOT / name, ROOT / name)
        return ControlGroups(ROOT / "cpuacct" / name, ROOT / "memory" / name)

    @property
    def folders(self) -> list[Path]:
        return list(dict.fromkeys((self.cpu, self.memory)))

    def used(self) -> Used:
        """Returns what all that was and is in the groups has used and holds: its own pages, and files in memory that are nowhere else."""
        return Used(self._cpu_seconds(), self._memory_mib())

    def _cpu_seconds(self) -> float:
        if self.cpu != self.memory:
            return int((self.cpu / "cpuacct.usage").read_text()) / 1e9
        return words(self.cpu / "cpu.stat")["usage_usec"] / 1e6

    def _memory_mib(self) -> float:
        found = words(self.memory / "memory.stat")
        own = found["total_rss"] + found["total_shmem"] if "total_rss" in found else found["anon"] + found["shmem"]
        return own / (1 << 20)

    def remove(self) -> None:
        """Removes the groups; what was in them is gone."""
        for folder in self.folders:
            folder.rmdir()


def words(file: Path) -> dict[str, int]:
    """Reads lines of a word and a number."""
    return {name: int(number) for name, number in (line.split() for line in file.read_text().splitlines())}
