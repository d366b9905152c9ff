"""One line of the report, and how it is made of samples."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field


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
