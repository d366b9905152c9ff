"""Plays scenarios by hand: scripts/scenarios says how."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
import uuid
from pathlib import Path

from harness import shoal_binary

from .cluster import Cluster, make_seed
from .faults import SCENARIOS
from .idle import idle
from .world import Report, under_load


def play(cluster: Cluster, app: str, name: str, seed: int, newer: Path | None = None) -> Report:
    """Plays a scenario once and returns its report."""
    print(f"{name}, seed {seed}: {SCENARIOS[name].says}", flush=True)
    with under_load(cluster, app, name, seed, SCENARIOS[name].registry) as world:
        world.newer = newer
        SCENARIOS[name].play(world)
        report = world.finish()
    print(report.text(), flush=True)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/scenarios")
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--network", type=int, default=0)
    options = parser.parse_args()
    if options.list or not options.names:
        for one in SCENARIOS.values():
            print(f"{one.name:14} {one.says}")
        return 0
    if unknown := [name for name in options.names if name not in SCENARIOS and name != "all"]:
        print(f"there is no scenario {unknown[0]}; there are: {', '.join(SCENARIOS)}", file=sys.stderr)
        return 2
    old = os.environ.get("SHOAL_OLD_BIN")
    every = [name for name in SCENARIOS if name != "upgrade" or old]
    names = every if "all" in options.names else options.names
    if "upgrade" in names and not old:
        print("SHOAL_OLD_BIN must name the binary to upgrade from", file=sys.stderr)
        return 2
    seed = options.seed if options.seed is not None else random.randrange(1 << 30)
    kept = os.environ.get("SHOAL_TEST_DATA")
    base = Path(kept) / "scenarios" if kept else Path(tempfile.mkdtemp(prefix="scenarios-"))
    base.mkdir(parents=True, exist_ok=True)
    if names != ["upgrade"]:
        make_seed(base / "seed")
    if "upgrade" in names and old:
        make_seed(base / "seed-old", Path(old))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    bad: list[Report] = []
    folder, cluster, app = base / f"run-{os.getpid()}", None, f"fleet-{uuid.uuid4().hex[:6]}"
    folder.mkdir()
    reports, last_alone = [], False
    try:
        for number in range(options.rounds):
            for name in names:
                alone = name == "upgrade" or SCENARIOS[name].nodes > 0
                if cluster is not None and (alone or last_alone):
                    cluster.close()
                    cluster = None
                    shutil.rmtree(folder)
                    folder.mkdir()
                if cluster is None:
                    older = Path(old) if name == "upgrade" and old else None
                    cluster = Cluster(folder, base / ("seed-old" if older else "seed"), options.network, older, SCENARIOS[name].config)
                    cluster.grow(SCENARIOS[name].nodes or options.nodes)
                    if SCENARIOS[name].nodes:
                        print(idle(cluster), flush=True)
                    cluster.deploy(app, SCENARIOS[name].containers)
                last_alone = alone
                report = play(cluster, app, name, seed + number, shoal_binary())
                reports.append(report)
                if report.broken:
                    bad.append(report)
    except BaseException:
        traceback.print_exc()
        bad.append(Report("interrupted", seed))
    finally:
        if cluster is not None:
            cluster.close()
        print("\n".join(report.text() for report in reports))
        if bad or options.keep:
            print(f"kept: {folder}; again with --seed {seed}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
            if not kept:
                shutil.rmtree(base, ignore_errors=True)
    if bad:
        print(f"{len(bad)} of {len(reports)} scenarios broke a promise, or could not be played to their end")
    else:
        print(f"all promises held in {len(reports)} scenarios")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
