"""Energy counter differences → power of each kind at each clock, and blocking power.

The total-energy counter ticks every 20–100 ms, about as long as one computation takes, so a
computation's energy cannot be read. But over an iteration the counter's value at tick i is

    E(t_i) = E_0 + Σ_c P_c · A_c(t_i) + P_block · W(t_i) + ε_i,

where A_c(t) is the time spent so far in column c (a kind at a clock), W(t) the time waited, both
known from the spans and clock writes, and ε comes from not knowing the tick's exact moment, so is
independent from tick to tick. Least squares with one free E_0 per iteration gives every P_c.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from perseusd.core.model import Kind

BLOCKING: None = None
"""The column of a GPU that waits."""

KEPT_ITERATIONS = 200
"""A job drifts, and memory is bounded."""

KEPT_TICKS = 20_000
"""Of a counter that nobody takes ticks from: at the fastest some seven minutes."""

FEWEST_TICKS = 8
"""Iterations shorter than this are joined, so that a tick tells more than where it fell."""

PRIOR_JOULES = 0.5
"""Strength of the prior towards the rank's mean power: matters only for columns hardly seen."""

Array = NDArray[np.float64]


class Activity(NamedTuple):
    """What the GPU did between two moments; kind None: it waited."""

    start_ns: int
    end_ns: int
    kind: Kind | None
    clock_mhz: int


class Column(NamedTuple):
    """One unknown power."""

    kind: Kind
    clock_mhz: int


class Power(NamedTuple):
    """An estimate, and the seconds of running time that it rests on."""

    watts: float
    seconds: float


@dataclass
class CounterTicks:
    """Finds the moments at which a polled counter ticked.

    A tick lies between the poll that saw the old value and the one that saw the new; its middle is
    taken. A counter that goes backwards (driver reload) starts afresh.
    """

    ticks: list[tuple[int, float]] = field(default_factory=list)
    _polled_ns: int = 0
    _value_j: float | None = None

    def poll(self, time_ns: int, energy_j: float) -> None:
        previous, before_ns = self._value_j, self._polled_ns
        self._value_j, self._polled_ns = energy_j, time_ns
        if previous is None or energy_j == previous:
            return
        if energy_j < previous:
            self.ticks.clear()
            return
        self.ticks.append(((before_ns + time_ns) // 2, energy_j))
        if len(self.ticks) > KEPT_TICKS:
            del self.ticks[: KEPT_TICKS // 2]

    def count(self, start_ns: int, end_ns: int) -> int:
        return sum(start_ns <= at_ns < end_ns for at_ns, _ in self.ticks)

    def take(self, start_ns: int, end_ns: int) -> list[tuple[int, float]]:
        """Ticks within [start, end); what lies before is dropped."""
        taken = [t for t in self.ticks if start_ns <= t[0] < end_ns]
        self.ticks = [t for t in self.ticks if t[0] >= end_ns]
        return taken


class _Block(NamedTuple):
    columns: tuple[Column | None, ...]
    gram: Array
    moment: Array
    seconds: Array


@dataclass
class EnergyLedger:
    """One GPU's regression."""

    _blocks: list[_Block] = field(default_factory=list)

    def add_iteration(
        self, activities: Sequence[Activity], ticks: Sequence[tuple[int, float]]
    ) -> None:
        """Add one iteration: activities without gaps, in order; ticks (time_ns, joules) within."""
        if len(ticks) < 3 or not activities:
            return
        columns = sorted({_column(a) for a in activities}, key=str)
        index = {column: i for i, column in enumerate(columns)}
        origin = activities[0].start_ns
        edges = np.array([a.start_ns - origin for a in activities], dtype=float)
        edges = np.append(edges, activities[-1].end_ns - origin) * 1e-9
        spent = np.zeros((len(edges), len(columns)))
        for i, activity in enumerate(activities):
            spent[i + 1, index[_column(activity)]] = edges[i + 1] - edges[i]
        spent = np.cumsum(spent, axis=0)
        at = np.array([t - origin for t, _ in ticks], dtype=float) * 1e-9
        design = np.column_stack([np.interp(at, edges, spent[:, c]) for c in range(len(columns))])
        value = np.array([joules for _, joules in ticks])
        design -= design.mean(axis=0)
        value -= value.mean()
        self._blocks.append(_Block(tuple(columns), design.T @ design, design.T @ value, spent[-1]))
        if len(self._blocks) > KEPT_ITERATIONS:
            del self._blocks[0]

    def solve(self) -> dict[Column | None, Power]:
        """Power of every column seen; key None is blocking power."""
        columns = sorted({c for block in self._blocks for c in block.columns}, key=str)
        if not columns:
            return {}
        index = {column: i for i, column in enumerate(columns)}
        gram = np.zeros((len(columns), len(columns)))
        moment, seconds = np.zeros(len(columns)), np.zeros(len(columns))
        for block in self._blocks:
            at = np.array([index[c] for c in block.columns])
            gram[np.ix_(at, at)] += block.gram
            moment[at] += block.moment
            seconds[at] += block.seconds
        prior = self._mean_power(gram, moment)
        ridge = PRIOR_JOULES**2 * np.eye(len(columns)) * 1e-4
        right = moment + ridge @ np.full(len(columns), prior)
        watts, *_ = np.linalg.lstsq(gram + ridge, right, rcond=None)  # solve() may raise
        return {
            column: Power(max(float(watts[i]), 0.0), float(seconds[i]))
            for column, i in index.items()
        }

    @staticmethod
    def _mean_power(gram: Array, moment: Array) -> float:
        total = np.ones(len(moment))
        return float(moment @ total) / max(float(total @ gram @ total), 1e-12)


def _column(activity: Activity) -> Column | None:
    return None if activity.kind is None else Column(activity.kind, activity.clock_mhz)
