"""What the iterations of one job, the same throughout, saved against full clock.

Held iterations are compared with those at full clock (baseline and reference windows) by
`contrast`, which says how far apart the two are and how sure that is. What an iteration has in
excess as an outlier (a checkpoint's pause, a stall) clocks neither cause nor avoid, so it is kept
out of the comparison in both arms alike and counted in full where shares are formed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

from perseusd.core.savings.contrast import FEWEST, OUTLIER, Contrast
from perseusd.core.savings.samples import Estimate

FRESH = 5
"""Held iterations under a plan that are compared at once: so two checkpoints are no new level."""

OUTLIER_SPREADS = 9
"""Times the median deviation; OUTLIER_SIGMAS of a normal distribution."""


class Record(NamedTuple):
    """One finished iteration, from its start to the next one's start."""

    number: int
    phase: str
    time_s: float
    makespan_s: float
    energy_j: float | None


@dataclass
class Sum:
    """Of iterations' joules or seconds."""

    count: int = 0
    total: float = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value

    @property
    def mean(self) -> float:
        return self.total / self.count


@dataclass
class Comparison:
    """Held against full-clock iterations, in joules or seconds."""

    contrast: Contrast
    held: Sum = field(default_factory=Sum)
    outliers: Sum = field(default_factory=Sum)
    """Held too, and kept out of the comparison."""

    def add(self, number: int, value: float, *, held: bool) -> None:
        used = self.contrast.add(number, value, held=held)
        if held:
            (self.held if used else self.outliers).add(value)

    def difference(self) -> Estimate | None:
        """What an iteration takes at full clock less what it takes held, with its interval."""
        logs = self.contrast.interval()
        if logs is None or not self.held.count:
            return None
        return Estimate(*(self.held.mean * math.expm1(log) for log in logs))

    def ratio(self, difference: float) -> float:
        """Held over full clock, all iterations together, where one differs by that much."""
        count = self.held.count + self.outliers.count
        total = self.held.total + self.outliers.total
        return total / (total + count * difference)

    def full(self, difference: float) -> float:
        """What one iteration takes at full clock."""
        return self.held.mean + difference


@dataclass
class Account:
    """From the first baseline until the job is another one."""

    energy: Comparison = field(default_factory=lambda: Comparison(Contrast(boundaries=True)))
    time: Comparison = field(default_factory=lambda: Comparison(Contrast()))
    references: int = 0
    _beside: Sum = field(default_factory=Sum)
    """Joules of iterations with changing clocks beside reference windows."""
    _others: Sum = field(default_factory=Sum)
    """Joules of the others that saved or cost something: learning, changes of plans."""
    _fresh: list[Record] | None = None
    """The first held iterations under a plan, until there are FRESH to tell outliers among."""
    _before: str = ""
    _replanned: bool = False

    def baseline(self, records: Sequence[Record]) -> None:
        """A stretch of iterations at full clock, which tell outliers among each other."""
        for record, usual in _screened(records):
            if usual:
                self._compare(record, held=False)
        self._replanned, self._before = True, "baseline"

    def add(self, record: Record) -> None:
        """An iteration of any other phase; all come in order."""
        match record.phase:
            case "hold":
                self._held(record)
            case "reference":
                self.references += 1
                self._take_fresh()
                self._compare(record, held=False)
            case "change" | "learn":
                self._between(record)
            case _:
                self._replanned = True
        self._before = record.phase

    def saving(self) -> Estimate | None:
        """1 − joules used by held iterations over what they would have used at full clock."""
        difference = self.energy.difference()
        if difference is None:
            return None
        return Estimate(*(1 - self.energy.ratio(d) for d in difference))

    def slowdown(self) -> Estimate | None:
        """Seconds taken by held iterations over what they would have taken at full clock − 1."""
        difference = self.time.difference()
        if difference is None:
            return None
        value, low, high = (self.time.ratio(d) - 1 for d in difference)
        return Estimate(value, high, low)

    def saved_j(self) -> Estimate | None:
        """By held iterations, by learning and by changes; what reference windows cost is not in
        it, as they saved nothing."""
        difference = self.energy.difference()
        return None if difference is None else Estimate(*(self._saved_j(d) for d in difference))

    def reference_cost_j(self) -> float | None:
        """What reference windows and the clock changes beside them would have saved if held."""
        difference = self.energy.difference()
        if difference is None:
            return None
        beside = self._beside.total - self._beside.count * self.energy.held.mean
        return self.references * difference.value + max(beside, 0.0)

    def _saved_j(self, difference: float) -> float:
        held = self.energy.held.count + self.energy.outliers.count
        fresh_j = [r.energy_j for r in self._fresh or () if r.energy_j is not None]
        other_count = self._others.count + self._beside.count + len(fresh_j)
        other_j = self._others.total + self._beside.total + sum(fresh_j)
        return held * difference + other_count * self.energy.full(difference) - other_j

    def _held(self, record: Record) -> None:
        if self._replanned:
            self._take_fresh()
            self._fresh, self._replanned = [], False
        if self._fresh is None:
            self._compare(record, held=True)
            return
        self._fresh.append(record)
        if len(self._fresh) == FRESH:
            self._take_fresh()

    def _take_fresh(self) -> None:
        """Begin to compare what is held under another plan."""
        fresh, self._fresh = self._fresh, None
        if not fresh:
            return
        self.energy.contrast.replan()
        self.time.contrast.replan()
        for record, usual in _screened(fresh):
            if usual:
                self._compare(record, held=True)
            else:
                self.time.outliers.add(record.time_s)
                if record.energy_j is not None:
                    self.energy.outliers.add(record.energy_j)

    def _between(self, record: Record) -> None:
        beside = record.phase == "change" and self._before == "reference"
        self._replanned = True
        if record.energy_j is not None:
            (self._beside if beside else self._others).add(record.energy_j)

    def _compare(self, record: Record, *, held: bool) -> None:
        if record.time_s > 0:
            self.time.add(record.number, record.time_s, held=held)
        if record.energy_j is not None and record.energy_j > 0:
            self.energy.add(record.number, record.energy_j, held=held)


def _screened(records: Sequence[Record]) -> list[tuple[Record, bool]]:
    """Each with whether it is like the others."""
    times = [record.time_s for record in records]
    energies = [record.energy_j for record in records if record.energy_j]
    return [(r, _usual(r.time_s, times) and _usual(r.energy_j, energies)) for r in records]


def _usual(value: float | None, among: Sequence[float]) -> bool:
    if not value or len(among) < FEWEST:
        return True
    middle = median(among)
    spread = median(abs(v - middle) for v in among)
    return abs(value - middle) <= max(OUTLIER_SPREADS * spread, OUTLIER * middle)
