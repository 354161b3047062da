"""One GPU's energy between two moments, less what its sensor's way of looking puts into it.

A counter that looks at 25 of every 100 ms takes what it sees for the rest (facts: A100, H100), and
one that is late counts the end of an iteration into the next. Over an iteration of some seconds
that is an error of one or two per cent, which comes and goes as slowly as ticks and iterations
drift past each other: the few iterations at full clock would all be off alike.

When the GPU computed and when it waited is known exactly. Let B be the seconds it computed from one
moment to another, and B̂ what a counter of seconds would have shown that ticks and looks like this
one. Then

    E + ΔP (B − B̂),    ΔP: the power of computing over waiting,

is the energy as before, less most of that error: the difference estimator of survey sampling
(Cochran, Sampling Techniques, 1977, ch. 7). It is right on average whatever ΔP, since B̂ is B on
average; the better ΔP, the less noise is left. ΔP is the slope of ticks' power over the share of
computing in what they saw, and of the ways to look at a tick that is taken which explains most.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from perseusd.core.energy.meter import EnergyMeter
from perseusd.core.energy.quantiles import median

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SEEING = np.array(
    [(share, late / 20) for share in (1.0, 0.5) for late in range(-4, 45)]
    + [(0.25, late / 40) for late in range(-8, 90)]
)
"""Ways to look: the share of the time between two ticks that the sensor sees, and how late it is,
in ticks; a poll's own lateness is part of that."""

KEPT_ITERATIONS = 3
ENOUGH_TICKS = 1000
"""Then the way of looking is settled."""

EXPLAINED = 0.2
"""Of the ticks' variance: below this nothing is corrected."""

POOLED_TICKS = 5.0
"""How much the other arm's ticks say of the power of computing in this one, in ticks of its own."""


class Reading(NamedTuple):
    """joules: as counted; unseen_s: B − B̂ by each way of looking, or all zero; full: the clock."""

    joules: float
    unseen_s: Array
    full: bool


@dataclass
class _Slopes:
    """Sums over ticks by way of looking: of s, p, s², p², s p; s: share of computing in what was
    seen, p: W."""

    ticks: int = 0
    sums: Array = field(default_factory=lambda: np.zeros((5, len(SEEING))))

    def add(self, ways: Ints, s: Array, p: Array) -> None:
        """s: (ways, ticks), p: (ticks,)."""
        self.ticks += len(p)
        same = np.ones(len(s))
        new = [s.sum(axis=1), p.sum() * same, (s * s).sum(axis=1), (p @ p) * same, s @ p]
        self.sums[:, ways] += new

    def spreads(self, ways: Ints | int) -> Array:
        """Shape (3, ways): sums of squares and products about the means: s², p², s p."""
        s, p, ss, pp, sp = self.sums[:, ways]
        count = max(self.ticks, 1)
        return np.array([ss - s * s / count, pp - p * p / count, sp - s * p / count])


@dataclass
class Gauge:
    """Polled by the daemon, told when its GPU computed."""

    meter: EnergyMeter = field(default_factory=EnergyMeter)
    _busy: deque[Array] = field(default_factory=lambda: deque(maxlen=KEPT_ITERATIONS))
    """Per iteration (spans, 2): starts and ends, s after _origin_ns."""
    _origin_ns: int = 0
    _slopes: tuple[_Slopes, _Slopes] = field(default_factory=lambda: (_Slopes(), _Slopes()))
    """At lowered clocks and at full ones."""
    _ways: Ints = field(default_factory=lambda: np.arange(len(SEEING)))
    """Those still thought possible."""

    def computed(self, stamps_ns: Ints, *, follows: bool) -> None:
        """An iteration's computations in order, (n, 2): when they began and ended; whether nothing
        was missed since the last one's."""
        if not follows or not self._busy:
            self._busy.clear()
            self._origin_ns = int(stamps_ns[0, 0])
        since = np.asarray((stamps_ns - self._origin_ns) * 1e-9, dtype=np.float64)
        self._busy.append(since)

    def read(self, start_ns: int, end_ns: int, *, full: bool) -> Reading | None:
        """What was used meanwhile; None where that is not known. Moments go forward.

        full: whether at full clock.
        """
        counted = self.meter.counted(start_ns, end_ns, self._origin_ns)
        self.meter.forget(start_ns, end_ns)
        if counted is None:
            return None
        start, end = (start_ns - self._origin_ns) * 1e-9, (end_ns - self._origin_ns) * 1e-9
        joules, nothing = counted.between(start, end), np.zeros(len(SEEING))
        if not self._busy:
            return Reading(joules, nothing, full)
        of = slice(max(int(np.searchsorted(counted.at_s, start)) - 1, 0), None)
        at = counted.at_s[of]
        if len(at) < 2 or at[0] >= end:  # shorter than it is known when its ticks were
            return Reading(joules, nothing, full)
        lengths = np.diff(at)
        edges, spent = self._spent()
        seeing = SEEING[self._ways]
        ends = at[1:] - seeing[:, 1:] * median(lengths)
        widths = seeing[:, :1] * lengths
        begins = ends - widths
        if ends[:, at[:-1] < end].max() > edges[-1] + lengths.max():
            return Reading(joules, nothing, full)
        by_ends, by_begins, (by_start, by_end) = (
            np.interp(moments, edges, spent) for moments in (ends, begins, (start, end))
        )
        shares = np.divide(by_ends - by_begins, widths, out=np.zeros_like(widths), where=widths > 0)
        own = (at[1:] <= end) & (begins.min(axis=0) >= edges[0]) & (lengths > 0)
        gained = np.diff(counted.joules[of])
        watts = np.divide(gained, lengths, out=np.zeros_like(gained), where=lengths > 0)
        self._slopes[full].add(self._ways, shares[:, own], watts[own])
        overlap = np.maximum(np.minimum(at[1:], end) - np.maximum(at[:-1], start), 0.0)
        unseen = nothing
        unseen[self._ways] = by_end - by_start - shares @ overlap
        if len(self._ways) > 1 and sum(slopes.ticks for slopes in self._slopes) > ENOUGH_TICKS:
            self._ways = np.array([self._best()])
        return Reading(joules, unseen, full)

    def joules(self, reading: Reading) -> float:
        """The reading, corrected by what is known by now."""
        best = self._best()
        each = [slopes.spreads(best) for slopes in self._slopes]
        ss, pp, sp = each[0] + each[1]
        if sp <= 0 or sp**2 < EXPLAINED * ss * pp:
            return reading.joules
        pooled = POOLED_TICKS / max(sum(slopes.ticks for slopes in self._slopes), 1)
        own_ss, _, own_sp = each[reading.full]
        known = own_ss + pooled * ss
        if known <= 0:
            return reading.joules
        slope = (own_sp + pooled * sp) / known
        return reading.joules + float(slope * reading.unseen_s[best])

    def _best(self) -> int:
        """The way that explains most of what ticks show."""
        ss, _, sp = self._slopes[0].spreads(self._ways) + self._slopes[1].spreads(self._ways)
        return int(self._ways[(sp**2 / np.maximum(ss, 1e-9)).argmax()])

    def _spent(self) -> tuple[Array, Array]:
        """Moments at which computing began or ended, and seconds computed so far."""
        spans = np.concatenate(self._busy)
        spent = np.zeros(spans.shape)
        spent[:, 1] = np.cumsum(spans[:, 1] - spans[:, 0])
        spent[1:, 0] = spent[:-1, 1]
        return spans.ravel(), spent.ravel()
