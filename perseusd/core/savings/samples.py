"""What was saved, as measured, and plain samples of iterations.

For the ratio R = ā / b̄ of two independent samples' means the delta method gives
var R ≈ R² (s_a² / (n_a ā²) + s_b² / (n_b b̄²)).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

Z95 = 1.96
FEWEST = 3
"""Iterations on each side below which no interval is stated."""

KEPT = 2000
"""Iterations kept per side."""


class Estimate(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


def added(one: Estimate | None, other: Estimate | None) -> Estimate | None:
    """The sum of two independent estimates, whose errors add as squares; None counts for nothing,
    as what was never measured is not claimed."""
    if one is None or other is None:
        return one if other is None else other
    value = one.value + other.value
    below = math.hypot(one.value - one.low, other.value - other.low)
    above = math.hypot(one.high - one.value, other.high - other.value)
    return Estimate(value, value - below, value + above)


@dataclass(frozen=True, slots=True)
class Savings:
    """What holding a plan has saved since the start, measured; None where it is not known yet."""

    saving: Estimate | None
    """1 − energy of the held iterations over their energy at full clock."""
    slowdown: Estimate | None
    """Time of the held iterations over their time at full clock, − 1."""
    energy_saved_j: Estimate | None
    """By all iterations, learning and changes of plans included; stays when a job is relearned."""
    references: int
    """Iterations at full clock for the sake of measuring, the baseline's aside."""
    reference_cost: float | None
    """What they and the clock changes around them cost, as a share of the saving."""


@dataclass
class Sample:
    """Per-iteration figures of one kind of iteration, newest KEPT."""

    values: list[float] = field(default_factory=list)

    def add(self, value: float) -> None:
        self.values.append(value)
        if len(self.values) > KEPT:
            del self.values[0]

    @property
    def mean(self) -> float:
        return math.fsum(self.values) / len(self.values)

    def relative_spread(self) -> float:
        """Standard deviation of one value over the mean; infinite for a single value."""
        return math.sqrt(self.relative_variance_of_mean() * len(self.values))

    def relative_variance_of_mean(self) -> float:
        """Infinite where a single value, or a mean of 0, tells nothing of it."""
        n, mean = len(self.values), self.mean
        if n < 2 or mean == 0:
            return math.inf
        spread = math.fsum((v - mean) ** 2 for v in self.values) / (n - 1)
        return spread / n / mean**2


def ratio(after: Sequence[float] | Sample, before: Sequence[float] | Sample) -> Estimate | None:
    """Mean of `after` over mean of `before`; None while either has fewer than FEWEST values."""
    after = after if isinstance(after, Sample) else Sample(list(after))
    before = before if isinstance(before, Sample) else Sample(list(before))
    if min(len(after.values), len(before.values)) < FEWEST or before.mean <= 0 or after.mean <= 0:
        return None
    value = after.mean / before.mean
    relative = after.relative_variance_of_mean() + before.relative_variance_of_mean()
    half = Z95 * value * math.sqrt(relative)
    return Estimate(value, value - half, value + half)
