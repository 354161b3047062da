"""How an emulated GPU runs work while its clock changes.

A computation is a curve: how long it takes and how much energy it draws at each supported clock.
At clock c it progresses at 1 / (factor × time_s[c]) per second and draws energy_j[c] / time_s[c]
watts, so a clock change in the middle counts from then on and `factor` (noise, a straggler) scales
time and energy alike. Everything here is a pure function of its arguments; times are nanoseconds
of CLOCK_MONOTONIC, clocks are indices into the GPU's ascending supported clocks.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import NamedTuple

from perseusd.errors import GpuError

_NS = 1_000_000_000
_EFFECTIVE_NS = itemgetter(0)


class ClockChange(NamedTuple):
    """From `effective_ns` on the GPU runs at this clock."""

    effective_ns: int
    clock_index: int


@dataclass(frozen=True)
class WorkCurve:
    """Time and energy of one kind of computation at each supported clock, aligned with them."""

    time_s: tuple[float, ...]
    energy_j: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.time_s or len(self.time_s) != len(self.energy_j):
            raise GpuError(
                f"a work curve needs one time and one energy per clock, not {len(self.time_s)} "
                f"times and {len(self.energy_j)} energies"
            )
        if not all(0 < time < math.inf for time in self.time_s):
            raise GpuError("a work curve's times must be above 0 s and finite")
        if not all(0 <= energy < math.inf for energy in self.energy_j):
            raise GpuError("a work curve's energies must be at least 0 J and finite")

    def power_w(self, clock_index: int) -> float:
        return self.energy_j[clock_index] / self.time_s[clock_index]


@dataclass(frozen=True)
class ClockHistory:
    """Clock changes in ascending time; the first one's clock also holds before it."""

    changes: tuple[ClockChange, ...]

    def __post_init__(self) -> None:
        if not self.changes:
            raise GpuError("a clock history needs at least one entry: the clock it starts with")
        times = [change[0] for change in self.changes]
        if times != sorted(times):
            raise GpuError("a clock history's entries must be in ascending time")

    def index_at(self, time_ns: int) -> int:
        return self.changes[self._position(time_ns)][1]

    def spans(self, start_ns: int, until_ns: int | None) -> Iterator[tuple[int, int | None, int]]:
        """(begin_ns, end_ns, clock_index) from start to until, or for ever (end None)."""
        position = self._position(start_ns)
        begin_ns = start_ns
        for effective_ns, _ in self.changes[position + 1 :]:
            if until_ns is not None and effective_ns >= until_ns:
                break
            yield begin_ns, effective_ns, self.changes[position][1]
            begin_ns = effective_ns
            position += 1
        yield begin_ns, until_ns, self.changes[position][1]

    def _position(self, time_ns: int) -> int:
        return max(0, bisect_right(self.changes, time_ns, key=_EFFECTIVE_NS) - 1)


class WorkProgress(NamedTuple):
    """What a computation has done by some time: `end_ns` is None until its fraction is 1."""

    fraction: float
    energy_j: float
    end_ns: int | None


def run_work(
    curve: WorkCurve,
    history: ClockHistory,
    start_ns: int,
    until_ns: int | None,
    factor: float = 1.0,
    cap_index: int | None = None,
) -> WorkProgress:
    """Progress by `until_ns` of a computation started at `start_ns`; until None: to its end.

    `cap_index` is the highest clock the power limit allows (see `capped_index`).
    """
    fraction = energy_j = 0.0
    if until_ns is not None and until_ns <= start_ns:
        return WorkProgress(0.0, 0.0, None)
    for begin_ns, end_ns, locked_index in history.spans(start_ns, until_ns):
        index = locked_index if cap_index is None else min(locked_index, cap_index)
        duration_s = factor * curve.time_s[index]
        left_ns = round((1.0 - fraction) * duration_s * _NS)
        if end_ns is None or end_ns - begin_ns >= left_ns:
            energy_j += (1.0 - fraction) * factor * curve.energy_j[index]
            return WorkProgress(1.0, energy_j, begin_ns + left_ns)
        step = (end_ns - begin_ns) / _NS / duration_s
        fraction += step
        energy_j += step * factor * curve.energy_j[index]
    return WorkProgress(fraction, energy_j, None)


def predict_end_ns(
    curve: WorkCurve,
    history: ClockHistory,
    start_ns: int,
    factor: float = 1.0,
    cap_index: int | None = None,
) -> int:
    """When the computation ends if the history's last clock stays."""
    end_ns = run_work(curve, history, start_ns, None, factor, cap_index).end_ns
    if end_ns is None:
        raise GpuError("a computation without end: its clock history never reaches the present")
    return end_ns


def capped_index(curve: WorkCurve, power_limit_w: float) -> int:
    """The highest clock whose power keeps the limit; the lowest clock if none does."""
    within = [i for i in range(len(curve.time_s)) if curve.power_w(i) <= power_limit_w]
    return within[-1] if within else 0
