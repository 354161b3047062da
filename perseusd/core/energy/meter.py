"""When an energy counter ticked, and what can be believed of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from perseusd.core.energy.sensor import CounterTicks, Tick, moments

Array = npt.NDArray[np.float64]

LINE_TICKS = 64
"""Ticks that time each other: a counter ticks evenly, polls do not see exactly when."""


class Counted(NamedTuple):
    """A counter's ticks over some time, none missing: when, s, and its value then, J."""

    at_s: Array
    joules: Array

    def between(self, start_s: float, end_s: float) -> float:
        first, last = np.interp([start_s, end_s], self.at_s, self.joules)
        return float(last - first)


@dataclass
class EnergyMeter:
    """One GPU's counter, read back at past moments by interpolation between ticks.

    What lies across a fall (a driver reload), a jump or a standstill of the counter is unknown.
    """

    _counter: CounterTicks = field(default_factory=CounterTicks)

    def poll(self, time_ns: int, energy_j: float) -> None:
        self._counter.poll(time_ns, energy_j)

    def counted(self, start_ns: int, end_ns: int, origin_ns: int = 0) -> Counted | None:
        """Ticks from before the start to after the end, seconds after `origin_ns`; None where
        there are none on both sides, or not all in between can be believed."""
        ticks = self._counter.ticks
        first = _before(ticks, start_ns)
        last = _before(ticks, end_ns) + 1
        if first < 0 or last >= len(ticks) or ticks[first].chain != ticks[last].chain:
            return None
        since = _needed(first, last)
        line = [t for t in ticks[since : last + 3] if t.chain == ticks[first].chain]
        at_s = moments(line, origin_ns)
        return Counted(at_s, np.array([tick.joules for tick in line]))

    def forget(self, start_ns: int, end_ns: int) -> None:
        """Drop what no time needs that begins and ends no earlier than this one."""
        ticks = self._counter.ticks
        since = _needed(_before(ticks, start_ns), _before(ticks, end_ns) + 1)
        if since > LINE_TICKS:  # seldom: it moves all others
            del ticks[:since]

    def between(self, start_ns: int, end_ns: int) -> float | None:
        """Joules used meanwhile; None where that is not known."""
        counted = self.counted(start_ns, end_ns, start_ns)
        return None if counted is None else counted.between(0.0, (end_ns - start_ns) * 1e-9)


def _needed(first: int, last: int) -> int:
    """From which tick on they are used, where a time lies between two of these."""
    return max(min(first - 1, last - LINE_TICKS), 0)


def _before(ticks: list[Tick], time_ns: int) -> int:
    """Index of the last tick that certainly was before."""
    low, high = 0, len(ticks)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if ticks[middle].by_ns <= time_ns else (low, middle)
    return low - 1
