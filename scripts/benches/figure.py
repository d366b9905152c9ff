"""A line of the report, and how its samples are taken: Shoal and what it is held against in turn."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from rig import Rig


@dataclass
class Figure:
    """One line of the report."""

    name: str
    unit: str
    samples: list[float]
    baselines: list[float]
    baseline_what: str
    # The ratio that is aimed at: at most this much for times, at least for rates.
    aim: float | None = None
    higher_is_better: bool = False
    percentile: int = 50
    notes: list[str] = field(default_factory=list)

    @property
    def value(self) -> float:
        return percentile(self.samples, self.percentile)

    @property
    def baseline(self) -> float:
        return percentile(self.baselines, self.percentile)

    @property
    def ratio(self) -> float:
        return self.value / self.baseline

    @property
    def best(self) -> tuple[float, float]:
        """Returns the best sample of both."""
        of = max if self.higher_is_better else min
        return of(self.samples), of(self.baselines)

    @property
    def met(self) -> bool | None:
        if self.aim is None:
            return None
        return self.ratio >= self.aim if self.higher_is_better else self.ratio <= self.aim


def percentile(samples: list[float], which: int) -> float:
    """Returns a percentile; that of few samples is the nearest one."""
    if which == 50:
        return statistics.median(samples)
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, len(ordered) * which // 100)]


def interleaved(rig: Rig, rounds: int, sides: list[str], **order) -> dict[str, list[dict]]:
    """Gives the same order to the clients of several sides in turn, and returns their answers."""
    _ = rig.relay
    answers: dict[str, list[dict]] = {side: [] for side in sides}
    for turn in range(rounds):
        first = turn % len(sides)
        for side in sides[first:] + sides[:first]:
            answers[side].append(rig.caller(side).do(**order))
    return answers


def all_ms(answers: list[dict]) -> list[float]:
    return [ms for answer in answers for ms in answer["ms"]]


def rates(answers: list[dict], count: int) -> list[float]:
    return [count / answer["seconds"] for answer in answers]


RELAY = "relay, the same entrypoints"
