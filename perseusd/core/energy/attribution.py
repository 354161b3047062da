"""Energy counter differences → power of each kind at each clock, and blocking power.

The total-energy counter ticks every 20–100 ms, about as long as one computation takes, so a
computation's energy cannot be read. But over an iteration the counter's value at tick i is

    E(t_i) = E_0 + Σ_c P_c · A_c(t_i) + P_block · W(t_i) + ε_i,

where A_c(t) is the time spent so far in column c (a kind at a clock), W(t) the time waited, both
known from the spans and clock writes, and ε comes from not knowing the tick's exact moment, so is
independent from tick to tick. Least squares with one free E_0 per iteration gives every P_c.

A counter whose sensor looks at a share s of the time only adds per tick, Δ after the last one,

    E(t_i) − E(t_i − Δ) = Σ_c P_c · (A_c(t_i − l) − A_c(t_i − l − sΔ)) / s + ε_i,

which is just as linear. s and the lateness l are not known: those under which the least remains
unexplained are taken. Then such a counter is no worse than one that sees everything; taken for one
that sees everything, it is off by tens of percent wherever iterations and ticks keep step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from perseusd.core.energy.sensor import Sensing, Tick
from perseusd.core.energy.stretch import (
    FEWEST_TICKS,
    Activities,
    Column,
    Equations,
    Stretch,
    stretch_of,
    waiting_first,
)

__all__ = [
    "BLOCKING",
    "FEWEST_TICKS",
    "Activities",
    "Column",
    "EnergyLedger",
    "Equations",
    "Power",
]

BLOCKING: None = None
"""The column of a GPU that waits."""

KEPT_ITERATIONS = 200
"""A job drifts, and memory is bounded."""

RIDGE = 2.5e-5
"""s²: strength of the prior towards the rank's mean power; matters only for columns hardly seen."""

FEWEST_BELIEVED = 3
"""Iterations before powers can tell that a tick is wrong."""

BELIEVED = 0.04
"""Relative standard error of a power below which it can."""

ROUNDING = 1e-15
"""Of the largest eigenvalue: smaller ones are nothing but its error."""

TAIL_NS = 400_000_000
"""Of what went before an iteration, kept for what late counters show in it."""

MOST_TAIL = 500
"""Activities of that: a job whose computations are that short needs no more."""

CALIBRATION_TICKS = (30, 60, 120, 240)
"""Numbers of ticks at which it is asked anew what the counter's ticks cover."""

SHARES = (1.0, 0.5, 0.25)
LATENESS_S = (-0.01, -0.005, 0.0, 0.005, 0.01, 0.015, 0.02, *(0.01 * i for i in range(3, 13)))
FINE_SHARES = (0.8, 1.0, 1.25)
FINE_S = (-0.004, -0.002, 0.0, 0.002, 0.004)

MUST_EXPLAIN = 0.6
"""A counter is taken for one that sees a share only, if that leaves less than this unexplained."""

Array = NDArray[np.float64]


class Power(NamedTuple):
    """An estimate, and the seconds of running time that it rests on."""

    watts: float
    seconds: float


@dataclass
class _Totals:
    """Equations summed as they come and go; columns stay once seen."""

    place: dict[Column | None, int] = field(default_factory=dict)
    gram: Array = field(default_factory=lambda: np.zeros((0, 0)))
    vectors: Array = field(default_factory=lambda: np.zeros((2, 0)))
    """(moment and seconds, columns)"""
    squares: float = 0.0
    ticks: float = 0.0

    def add(self, block: Equations, sign: float) -> None:
        for column in block.columns:
            self.place.setdefault(column, len(self.place))
        grown = len(self.place) - len(self.gram)
        if grown:
            self.gram = np.pad(self.gram, (0, grown))
            self.vectors = np.pad(self.vectors, ((0, 0), (0, grown)))
        at = np.array([self.place[c] for c in block.columns])
        self.gram[at[:, None], at] += sign * block.gram
        self.vectors[0, at] += sign * block.moment
        self.vectors[1, at] += sign * block.seconds
        self.squares += sign * block.squares
        self.ticks += sign * block.ticks

    def equations(self) -> Equations | None:
        if not self.place:
            return None
        moment, seconds = self.vectors
        columns = tuple(self.place)
        return Equations(columns, self.gram, moment, seconds, self.squares, self.ticks)


@dataclass
class EnergyLedger:
    """One GPU's regression."""

    sensing: Sensing = field(default_factory=Sensing)
    _blocks: list[Equations] = field(default_factory=list)
    _raw: list[Stretch] = field(default_factory=list)
    """Kept until it is known what ticks cover."""
    _ticks: int = 0
    _calibrated: int = 0
    """How many of CALIBRATION_TICKS have been."""
    _tail: Activities | None = None
    _last: Tick | None = None
    _totals: _Totals = field(default_factory=_Totals)

    def add_iteration(self, activities: Activities, ticks: Sequence[Tick]) -> None:
        """Add one iteration and the ticks within."""
        if not len(activities):
            return
        tail = self._tail
        if tail is None or tail.end_ns != activities.start_ns:
            tail = self._last = None
        if self._last is not None:
            ticks = [self._last, *ticks]
        whole = activities if tail is None else tail.then(activities)
        stretch = stretch_of(whole, len(whole) - len(activities), ticks)
        first = np.searchsorted(whole.edges_ns[1:], whole.end_ns - TAIL_NS, side="right")
        self._tail = whole.tail(max(int(first), len(whole) - MOST_TAIL))
        self._last = ticks[-1] if ticks else None
        if stretch is not None:
            self._add(stretch)

    def _add(self, stretch: Stretch) -> None:
        self._ticks += len(stretch.by_s)
        if self._calibrated < len(CALIBRATION_TICKS):
            self._raw.append(stretch)
        block = stretch.equations(self.sensing, self._believed(stretch.columns))
        if block is not None:
            self._blocks.append(block)
            self._totals.add(block, 1.0)
        if len(self._blocks) > KEPT_ITERATIONS:
            self._totals.add(self._blocks.pop(0), -1.0)

    def _believed(self, columns: Sequence[Column | None]) -> Array | None:
        """Watts of columns that are known well; NaN of others: what they say is news."""
        total = self.equations()
        if len(self._blocks) < FEWEST_BELIEVED or total is None:
            return None
        size, spread = np.linalg.eigh(total.gram + RIDGE * np.eye(len(total.columns)))
        inverse = np.divide(1, size, out=np.zeros_like(size), where=size > ROUNDING * size[-1])
        watts = spread @ (inverse * (total.moment @ spread))
        error = np.sqrt(total.variance(watts) * (spread**2 @ inverse))
        known = dict(
            zip(total.columns, np.where(error < BELIEVED * watts, watts, np.nan), strict=True)
        )
        return np.array([known.get(column, math.nan) for column in columns])

    @property
    def wants_calibration(self) -> bool:
        """Whether enough has been seen to ask what ticks cover."""
        due = self._calibrated < len(CALIBRATION_TICKS)
        return due and self._ticks >= CALIBRATION_TICKS[self._calibrated]

    def calibrate(self) -> None:
        """Find what ticks cover, and count everything anew under it."""
        while self.wants_calibration:
            self._calibrated += 1
        coarse = [Sensing(share, late_s) for share in SHARES for late_s in LATENESS_S]
        best = self._best(coarse)
        shares = [best.share * f for f in FINE_SHARES] if best.share < 1 else [1.0]
        fine = [Sensing(share, best.late_s + step_s) for share in shares for step_s in FINE_S]
        self.assume(self._best(fine))
        if self._calibrated == len(CALIBRATION_TICKS):
            self._raw.clear()

    def assume(self, sensing: Sensing) -> None:
        """Count everything anew as seen by such a sensor, where it can be."""
        if sensing == self.sensing or not self._raw:
            return
        self.sensing = sensing
        self._blocks = [b for b in (s.equations(sensing, None) for s in self._raw) if b is not None]
        self._totals = _Totals()
        for block in self._blocks:
            self._totals.add(block, 1.0)

    def _best(self, sensings: Sequence[Sensing]) -> Sensing:
        left = self._unexplained(sensings)
        best = int(np.argmin(left))
        whole = [i for i, s in enumerate(sensings) if s.share == 1]
        if whole and sensings[best].share < 1:
            best_whole = min(whole, key=lambda i: float(left[i]))
            if left[best] > MUST_EXPLAIN * left[best_whole]:
                return sensings[best_whole]
        return sensings[best]

    def _unexplained(self, sensings: Sequence[Sensing]) -> Array:
        """Shape (sensings,): J² that no powers explain. All stand the same increments' test."""
        columns = sorted({c for s in self._raw for c in s.columns}, key=waiting_first)
        place = {column: i for i, column in enumerate(columns)}
        gram = np.zeros((len(sensings), len(columns), len(columns)))
        moment = np.zeros((len(sensings), len(columns)))
        squares = 0.0
        for stretch in self._raw:
            design, added, _ = stretch.increments(sensings)
            at = np.array([place[c] for c in stretch.columns])
            gram[:, at[:, None], at] += np.einsum("hic,hid->hcd", design, design)
            moment[:, at] += np.einsum("hic,i->hc", design, added)
            squares += float(added @ added)
        ridge = 1e-9 * np.trace(gram, axis1=1, axis2=2)[:, None, None] + 1e-12
        watts = np.linalg.solve(gram + ridge * np.eye(len(columns)), moment[:, :, None])[:, :, 0]
        left: Array = squares - np.einsum("hc,hc->h", watts, moment)
        return left

    def equations(self) -> Equations | None:
        """Everything seen, summed; None where nothing was. Changes as more is added."""
        return self._totals.equations()

    def solve(self) -> dict[Column | None, Power]:
        """Power of every column seen; key None is blocking power."""
        total = self.equations()
        if total is None:
            return {}
        ridge = RIDGE * np.eye(len(total.columns))
        right = total.moment + ridge @ np.full(len(total.columns), _mean_power(total))
        watts, *_ = np.linalg.lstsq(total.gram + ridge, right, rcond=None)  # solve() may raise
        return {
            column: Power(max(float(w), 0.0), float(s))
            for column, w, s in zip(total.columns, watts, total.seconds, strict=True)
        }


def _mean_power(equations: Equations) -> float:
    total = np.ones(len(equations.moment))
    return float(equations.moment @ total) / max(float(total @ equations.gram @ total), 1e-12)
