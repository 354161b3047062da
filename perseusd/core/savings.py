"""What was saved, as measured: a ratio of means with a 95 % interval.

Baseline and hold iterations are two independent samples. For the ratio R = h̄ / b̄ of their means
the delta method gives var R ≈ R² (s_h² / (n_h h̄²) + s_b² / (n_b b̄²)).
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
