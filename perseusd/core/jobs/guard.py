"""Whether iterations are slower than they may be because of us, after every one that we slow.

Two looks at each iteration's makespan, at the moment its last computation ends:

- *ours*: what this very iteration lost to our lowered clocks, by the learned curves. Its own noise
  is on both sides and cancels, so a loss of 1 % is seen among iterations that vary by 5 %. But it
  is a model: a wrong curve misleads it.
- *measured*: the makespan against the baseline's. It needs no model, but has the noise of both.

Either is enough. What the model says is not believed where the measurement clearly contradicts it
(a GPU that ignores its clock). Iteration times, which hold the waiting for others too, are looked
at last: what they alone have lost was most likely not ours, but clocks go up all the same until
that has been seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from statistics import median

from perseusd.core.savings.samples import Sample

IN_A_ROW = 3
"""Iterations over the limit, one after the other, that are never exceeded because of us."""

LIMIT = 0.01
"""Share of the iteration time at full clock; more only where a job's own budget allows it."""

OVER_BUDGET = 0.005
"""A job's own budget is a mean: single iterations may lie so far above it."""

NEAR = 0.8
"""Of the limit: the model is not exact, so IN_A_ROW iterations above this are taken for over it."""

SIGMAS = 2.5
"""Beyond which a measured loss is no noise."""

DOUBT_SIGMAS = 3.0
"""Beyond which a measured loss contradicts a modelled one."""

OUTGROWN = 0.02
"""Share by which an iteration at full clock would have been shorter than the baseline says, beyond
noise, that no error of the curves explains: the baseline is that of a slower job, so what is
measured against it would be allowed too much."""

MEDIAN_SPREAD = 0.67
"""Standard deviation of the median of three normal values, of one value's."""


class Breach(Enum):
    """What was breached, in words for the log."""

    OURS = "by the learned curves, lowered clocks made them longer than allowed"
    MEASURED = "computing took longer than allowed"
    WAITING = "what iterations wait for took longer"
    FASTER = "iterations became shorter than they were at full clock"


@dataclass
class Guard:
    """budget: as the job or the configuration says, share of the iteration time."""

    budget: float
    _ours: list[float] = field(default_factory=list)
    _makespans: list[float] = field(default_factory=list)
    _times: list[float] = field(default_factory=list)
    _full: list[float] = field(default_factory=list)

    @property
    def limit(self) -> float:
        return max(LIMIT, self.budget + OVER_BUDGET)

    @property
    def ours(self) -> float:
        """Mean share of the iteration time that the last two lost to us, as modelled."""
        last = self._ours[-2:]
        return sum(last) / len(last) if last else 0.0

    def clear(self) -> None:
        """Clocks are full from now on."""
        self._ours.clear()
        self.excuse()

    def excuse(self) -> None:
        """What was measured so far is explained."""
        self._makespans.clear()
        self._times.clear()
        self._full.clear()

    def tightened(self) -> None:
        """Something was done about what lowered clocks have cost; nothing about the rest."""
        self._ours.clear()

    def ended(self, ours: float, makespan: float, full: float = 0.0) -> None:
        """An iteration with lowered clocks has ended.

        ours: the share of the baseline's time that it lost to them, as modelled.
        makespan: its own over the one expected at full clock, stragglers counted in, minus 1.
        full: the same without what it lost to lowered clocks, as modelled.
        """
        self._full = [*self._full[-1:], full]
        self._ours = [*self._ours[1 - IN_A_ROW :], ours]
        self._makespans = [*self._makespans[1 - IN_A_ROW :], makespan]

    def lasted(self, waited: float) -> None:
        """It is over: how much longer than usual was waited after its end, for nobody known."""
        self._times = [*self._times[1 - IN_A_ROW :], waited]

    def breach(self, makespans: Sample, times: Sample) -> Breach | None:
        """makespans, times: the baseline's, for their noise."""
        if self._lost_to_us(makespans):
            return Breach.OURS
        if self._slow(self._makespans, makespans):
            return Breach.MEASURED
        if self._outgrown(makespans):
            return Breach.FASTER
        if self._slow(self._times, times):
            return Breach.WAITING
        return None

    def _lost_to_us(self, makespans: Sample) -> bool:
        last = self._ours
        two = len(last) > 1 and min(last[-2:]) > self.limit
        three = len(last) == IN_A_ROW and min(last) > NEAR * self.limit
        if not (two or three):
            return False
        seen = self._makespans[-2:] if two else self._makespans
        lost = last[-2:] if two else last
        n = len(lost)
        doubt = DOUBT_SIGMAS * _spread(makespans) * math.sqrt(1 / n + _share_of_mean(makespans))
        return sum(seen) / n > sum(lost) / n - self.limit - doubt

    def _outgrown(self, baseline: Sample) -> bool:
        n = len(self._full)
        noise = _spread(baseline) * math.sqrt(1 / 2 + _share_of_mean(baseline))
        return (
            n > 1
            and max(self._full) < -OUTGROWN
            and sum(self._full) / n < -(OUTGROWN + SIGMAS * noise)
        )

    def _slow(self, last: list[float], baseline: Sample) -> bool:
        """A single long one may be a checkpoint, so the middle one of the last decides."""
        if len(last) < IN_A_ROW:
            return False
        noise = _spread(baseline) * math.sqrt(MEDIAN_SPREAD**2 + _share_of_mean(baseline))
        return median(last) > self.limit + SIGMAS * noise


def _spread(baseline: Sample) -> float:
    return baseline.relative_spread()


def _share_of_mean(baseline: Sample) -> float:
    """Variance of the baseline's mean over the one of a single iteration."""
    return 1 / len(baseline.values)
