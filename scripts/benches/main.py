"""Runs the benches that scripts/bench names and prints what they found.

Progress goes to stderr, figures to stdout: a table, or one JSON object a line.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from figure import Figure
from figures import BENCHES
from rig import Rig


def progress(text: str) -> None:
    print(f"  {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def as_json(figure: Figure) -> str:
    """Returns the line of a figure for programs."""
    return json.dumps({
        "name": figure.name, "unit": figure.unit, "value": round(figure.value, 3),
        "baseline": round(figure.baseline, 3), "baseline_what": figure.baseline_what, "ratio": round(figure.ratio, 3),
    })  # fmt: skip


def number(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def cells(figure: Figure) -> list[str]:
    """Returns the cells of a figure's row for people."""
    aim, met = "", ""
    if figure.aim is not None:
        aim = f"{'≥' if figure.higher_is_better else '≤'} {figure.aim:g}"
        met = "met" if figure.met else "missed"
    (best, best_baseline) = figure.best
    return [
        figure.name, figure.unit, number(figure.value), number(figure.baseline), f"{figure.ratio:.2f}", aim, met,
        f"{number(best)} / {number(best_baseline)}", str(len(figure.samples)), figure.baseline_what,
    ]  # fmt: skip


def table(figures: list[Figure]) -> str:
    """Returns all figures as a table, their notes below."""
    rows = [["figure", "unit", "Shoal", "baseline", "ratio", "aim", "", "best of both", "n", "baseline is"], *map(cells, figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    numbers = {2, 3, 4, 7, 8}
    lines = [
        "  ".join(cell.rjust(width) if column in numbers else cell.ljust(width) for column, (cell, width) in enumerate(zip(row, widths))).rstrip()
        for row in rows
    ]
    notes = [f"{figure.name}: {note}" for figure in figures for note in figure.notes]
    return "\n".join([*lines, "", *notes])


def machine(folder: Path) -> str:
    """Returns what the figures were taken on, and how busy it was."""
    model = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "?")
    mounts = [line.split(" ") for line in Path("/proc/self/mounts").read_text().splitlines()]
    under = max((mount for mount in mounts if folder.is_relative_to(mount[1])), key=lambda mount: len(mount[1]))
    load = " ".join(f"{load:.1f}" for load in os.getloadavg())
    return f"{os.cpu_count()} cores ({model}), Linux {os.uname().release}, {under[2]} under {folder.parent}, load {load}"


def run(benches: list[str], rig: Rig, as_they_come: bool) -> tuple[list[Figure], list[str]]:
    """Runs benches; returns their figures, and the names of those that broke."""
    figures, broken = [], []
    for name in benches:
        progress(f"{name}: {(BENCHES[name].__doc__ or '').strip()}")
        try:
            for figure in BENCHES[name](rig):
                figures.append(figure)
                if as_they_come:
                    print(as_json(figure), flush=True)
        except Exception:
            broken.append(name)
            traceback.print_exc()
            print(rig.log_tail(), file=sys.stderr)
    return figures, broken


def main() -> int:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--tool", type=Path, required=True)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--ray", type=Path)
    options = parser.parse_args()
    # A run that is stopped takes down what it has made.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    rig = Rig(options.tool, options.quick, options.ray, progress)
    before = machine(rig.folder)
    try:
        figures, broken = run(options.names or list(BENCHES), rig, options.json)
        # First: what cannot be taken down takes no figures with it.
        if not options.json and figures:
            print(table(figures))
            if options.ray is None:
                print("Ray was not measured: --ray installs it and does.")
            print(f"\nbefore: {before}\nafter: {machine(rig.folder)}", flush=True)
    finally:
        rig.close()
    for name in broken:
        print(f"{name} broke: see above", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
