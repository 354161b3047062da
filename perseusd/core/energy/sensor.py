"""How an energy counter shows what a GPU draws: its ticks, and what each of them covers.

A polled counter is known to have ticked between the poll that saw the old value and the one that
saw the new. Counters tick evenly, so a line through many ticks times them far better than polls do.
What a tick adds is not always the energy since the last one: A100's and H100's sensors look at
25 of every 100 ms and count them fourfold, and all are late by some constant. Which of these a
counter does is found by trying: see `attribution`.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

KEPT_TICKS = 20_000
"""Of a counter that nobody takes ticks from: at the fastest some seven minutes."""

MOST_WATTS = 5_000.0
"""No GPU draws this: a counter that says so has jumped."""

LONGEST_GAP = 3.5
"""Usual intervals after which a counter that did not tick has stalled."""

FEWEST_EVEN = 6
"""Ticks that make a line."""

UNEVEN = 0.25
"""Share of a bracket by which a tick may lie outside of it and its line still be believed."""

Array = NDArray[np.float64]


class Tick(NamedTuple):
    """A change of the counter between two polls. Ticks of one chain follow each other gaplessly."""

    after_ns: int
    by_ns: int
    joules: float
    chain: int = 0

    @property
    def middle_ns(self) -> int:
        return (self.after_ns + self.by_ns) // 2


class Sensing(NamedTuple):
    """What one tick of a counter covers.

    share: of the time between two ticks, the part just before the second that is seen at all.
    late_s: by how much the counter is late, of which polls may see a part.
    """

    share: float = 1.0
    late_s: float = 0.0


@dataclass
class CounterTicks:
    """Finds the moments at which a polled counter ticked.

    A counter that goes back (driver reload), jumps or stalls starts another chain: nothing is
    inferred across that.
    """

    ticks: list[Tick] = field(default_factory=list)
    _polled_ns: int = 0
    _value_j: float | None = None
    _chain: int = 0
    _usual_ns: float = math.inf
    _previous: Tick | None = None

    def poll(self, time_ns: int, energy_j: float) -> None:
        if not math.isfinite(energy_j):
            return
        before_j, before_ns = self._value_j, self._polled_ns
        self._value_j, self._polled_ns = energy_j, time_ns
        if before_j is None or energy_j == before_j:
            return
        if energy_j < before_j:
            self._chain += 1
            self._previous = None
            return
        self._ticked(before_ns, time_ns, energy_j)

    def _ticked(self, before_ns: int, time_ns: int, energy_j: float) -> None:
        previous = self._previous
        if previous is not None:
            interval_ns = (before_ns + time_ns) // 2 - previous.middle_ns
            most_j = MOST_WATTS * (time_ns - previous.after_ns) * 1e-9
            usual_ns = self._usual_ns if self._usual_ns < math.inf else float(interval_ns)
            counted_ns = min(interval_ns, LONGEST_GAP * usual_ns)
            if interval_ns > counted_ns or energy_j - previous.joules > most_j:
                self._chain += 1
            self._usual_ns = usual_ns + 0.1 * (counted_ns - usual_ns)
        self._previous = Tick(before_ns, time_ns, energy_j, self._chain)
        self.ticks.append(self._previous)
        if len(self.ticks) > KEPT_TICKS:
            del self.ticks[: KEPT_TICKS // 2]

    def count(self, start_ns: int, end_ns: int) -> int:
        return max(self._before(end_ns) - self._before(start_ns), 0)

    def take(self, start_ns: int, end_ns: int) -> list[Tick]:
        """Ticks within [start, end); what lies before is dropped."""
        end = self._before(end_ns)
        taken = self.ticks[self._before(start_ns) : end]
        del self.ticks[:end]
        return taken

    def _before(self, time_ns: int) -> int:
        """How many ticks were before."""
        return bisect.bisect_left(self.ticks, time_ns, key=lambda tick: tick.middle_ns)


def moments(ticks: Sequence[Tick], origin_ns: int) -> Array:
    """Shape (ticks,): seconds after origin at which each happened, all of one chain.

    Where the ticks fit a line within their brackets they happened on the line; else in the middles.
    """
    after_ns, by_ns, _, _ = zip(*ticks, strict=True)
    after, by = (np.array([after_ns, by_ns], dtype=np.int64) - origin_ns) * 1e-9
    middle: Array = (after + by) / 2
    if len(ticks) < FEWEST_EVEN:
        return middle
    spacing = (middle[-1] - middle[0]) / (len(ticks) - 1)
    if not spacing > 0:
        return middle
    index = np.round((middle - middle[0]) / spacing)
    from_mean = index - index.sum() / len(index)
    slope = (from_mean @ middle) / (from_mean @ from_mean)
    line: Array = middle.sum() / len(middle) + slope * from_mean
    room = UNEVEN * (by - after)
    if (np.diff(index) < 1).any() or (line < after - room).any() or (line > by + room).any():
        return middle
    return np.clip(line, after, by)
