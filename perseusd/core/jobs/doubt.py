"""After a breach: what of the knowledge still holds, found out at full clock.

A breach says that iterations were too long, not why. So the clocks are up and the baseline is
measured anew, and beside it how long each rank's computations take. Where they take as long as
what was planned on, the knowledge holds, whatever else has changed; where not, the job is another
one. A straggler that is detected meanwhile explains it: then the baseline before holds.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from perseusd.core.events.iterations import JobIteration
from perseusd.core.jobs.guard import Breach
from perseusd.core.model import Kind
from perseusd.core.savings.samples import Sample

CHANGED = 0.02
"""Relative change of a rank's pace, beyond noise, that makes a job another one."""

UNCHANGED = 0.01
"""Of the baseline's time, beyond noise: within it, only our plan can have been the cause."""

SIGMAS = 3.0

KEPT = 5
"""Iterations at full clock that tell dependencies and communication anew."""


@dataclass
class Doubt:
    """usual: what the plan in doubt took each kind to take at full clock, in seconds.

    aside: the baseline until then (times, makespans), as the ledger gives it.
    reckoned: stragglers that the plan in doubt reckoned with: own ranks, and -1 for others.
    """

    breach: Breach
    usual: Mapping[Kind, float]
    aside: tuple[Sample, Sample]
    reckoned: Collection[int] = ()
    iterations: list[JobIteration] = field(default_factory=list)
    _took: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    _expected: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    _count: dict[int, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, iteration: JobIteration) -> None:
        """An iteration at full clock."""
        self.iterations = [*self.iterations[1 - KEPT :], iteration]
        for rank, own in enumerate(iteration.ranks):
            for span in own.spans:
                kind = Kind(rank, span.step.chunk, span.step.instruction)
                if (usual := self.usual.get(kind)) is not None:
                    self._took[rank] += span.seconds
                    self._expected[rank] += usual
                    self._count[rank] += 1

    def changed(self, noise: float) -> bool:
        """Whether computations are others than those planned on. noise: relative, of one."""
        return any(abs(deviation) > 1 for deviation in self._deviations(noise).values())

    def slow_ranks(self, noise: float) -> list[int]:
        """Those that take longer than planned on, although their clocks should be full."""
        return [rank for rank, deviation in self._deviations(noise).items() if deviation > 1]

    def _deviations(self, noise: float) -> dict[int, float]:
        """By rank, the change of its pace over the one that is noticed."""
        return {
            rank: (took / self._expected[rank] - 1)
            / (CHANGED + SIGMAS * noise / math.sqrt(self._count[rank]))
            for rank, took in self._took.items()
            if self._expected[rank] > 0
        }

    def ours(self, baseline: Sample) -> bool:
        """Whether iterations at full clock are what they were before: it was our plan."""
        return self._same(self.aside[0], baseline)

    def relinked(self, makespans: Sample) -> bool:
        """Whether the same computations take another time together than they did."""
        return not self._same(self.aside[1], makespans)

    @staticmethod
    def _same(before: Sample, now: Sample) -> bool:
        if not before.values or before.mean <= 0:
            return False
        variance = before.relative_variance_of_mean() + now.relative_variance_of_mean()
        if not math.isfinite(variance):
            return False
        return abs(now.mean / before.mean - 1) < UNCHANGED + 2 * math.sqrt(variance)
