"""What computations were seen to take: the newest durations of every kind at every clock."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from perseusd.core.energy.quantiles import median
from perseusd.core.model import Kind

KEPT_SAMPLES = 64
"""Per kind and clock, the newest; a job drifts, and memory is bounded."""

NOISE_FLOOR = 0.003
"""Relative noise of one duration is never believed to be below this."""

DRIFT_GAIN = 0.02
"""Share by which a kind's level at a clock follows each duration: with some ten computations an
iteration a drift is followed within five, and noise moves the level by a tenth of its size."""

DRIFT_SAMPLES = 12
"""At one clock, before its durations say anything of drift."""

OWN_GAIN = 0.003
"""The same for what is no drift of the kind but of what was thought of that clock: without it two
clocks in use would each for ever hold the other's error for drift."""

MOST_DEVIATION = 0.03
"""Of a duration, that counts as drift: more is a straggling computation."""

LEAST_DRIFT = 0.0005
"""Less is not worth correcting the durations at other clocks for."""

SHORTEST_S = 1e-12
"""What a typical duration of nothing counts as."""

LOWEST_MEAN = math.log(SHORTEST_S)

Array = NDArray[np.float64]


@dataclass
class Durations:
    """What was seen: per kind and clock, the newest durations in seconds.

    A kind that drifts takes its durations at all clocks along, so that those at a clock not used
    any more stay comparable: they are as they would be now.
    """

    seen: dict[Kind, dict[int, list[float]]] = field(default_factory=dict)
    version: int = 0
    """Grows with everything that is added."""
    _means: dict[tuple[Kind, int], tuple[float, int]] = field(default_factory=dict)
    """(log of the typical duration, samples) as last asked for; recounted after an addition."""
    _deviations: dict[tuple[Kind, int], Array] = field(default_factory=dict)
    """Of single durations from their median, as last asked for."""
    _level: dict[tuple[Kind, int], float] = field(default_factory=dict)
    """Logarithm of what a kind takes at a clock, followed by DRIFT_GAIN."""
    _drift: dict[tuple[Kind, int], float] = field(default_factory=dict)
    """By how much a level has moved that the other clocks' durations have not yet."""

    def add(self, kind: Kind, clock_mhz: int, *seconds: float) -> None:
        """Durations at one clock, in the order in which they were seen."""
        if not seconds:
            return
        self.version += len(seconds)
        samples = self.seen.setdefault(kind, {}).setdefault(clock_mhz, [])
        told = max(DRIFT_SAMPLES - len(samples), 0)
        while told < len(seconds) and not seconds[told] > 0:
            told += 1
        if told < len(seconds):
            level = self._level.get((kind, clock_mhz))
            if level is None:
                level = _log_mean([*samples, *seconds[:told]][-KEPT_SAMPLES:])
            self._follow(kind, clock_mhz, level, seconds[told:])
        samples += seconds
        del samples[:-KEPT_SAMPLES]
        self._means.pop((kind, clock_mhz), None)
        self._deviations.pop((kind, clock_mhz), None)

    def _follow(self, kind: Kind, clock_mhz: int, level: float, durations: Sequence[float]) -> None:
        """level: of that clock until now, as a logarithm."""
        own = kind, clock_mhz
        drift, taken = self._drift.get(own, 0.0), 0.0
        for seconds in durations:
            if seconds > 0:
                off = min(max(math.log(seconds) - level, -MOST_DEVIATION), MOST_DEVIATION)
                level += (DRIFT_GAIN + OWN_GAIN) * off
                drift += DRIFT_GAIN * off
                if abs(drift) >= LEAST_DRIFT:
                    taken, drift = taken + drift, 0.0
        self._level[own], self._drift[own] = level, drift
        if taken:
            self._take_along(kind, clock_mhz, taken)

    def _take_along(self, kind: Kind, clock_mhz: int, drift: float) -> None:
        factor = math.exp(drift)
        for clock, samples in self.seen[kind].items():
            if clock == clock_mhz:
                continue
            samples[:] = [s * factor for s in samples]
            mean, count = self._means.pop((kind, clock), (LOWEST_MEAN, 0))
            if mean > LOWEST_MEAN:
                self._means[kind, clock] = mean + drift, count
            if (kind, clock) in self._level:
                self._level[kind, clock] += drift

    def mean(self, kind: Kind, clock_mhz: int) -> tuple[float, int]:
        """(logarithm of the typical duration, samples); samples must have been seen."""
        found = self._means.get((kind, clock_mhz))
        if found is None:
            samples = self.seen[kind][clock_mhz]
            found = self._means[kind, clock_mhz] = _log_mean(samples), len(samples)
        return found

    def count(self, kind: Kind, clock_mhz: int) -> int:
        return len(self.seen.get(kind, {}).get(clock_mhz, ()))

    def typical(self, kind: Kind, clock_mhz: int) -> float | None:
        samples = self.seen.get(kind, {}).get(clock_mhz)
        return trimmed_mean(samples) if samples else None

    def relative_noise(self, top_mhz: Mapping[int, int]) -> float:
        """Relative standard deviation of one computation's duration at the top clock.

        From the median absolute deviation, so that a straggling iteration does not count as noise.
        """
        tops = [(kind, top_mhz[kind.rank]) for kind in self.seen]
        deviations = [self._deviation(*own) for own in tops if self.count(*own) >= 4]
        if not deviations:
            return 0.01
        return max(NOISE_FLOOR, 1.4826 * median(np.concatenate(deviations)))

    def _deviation(self, kind: Kind, clock_mhz: int) -> Array:
        """Of each duration from their median; relative, so that a drift leaves them as they are."""
        found = self._deviations.get((kind, clock_mhz))
        if found is None:
            own = np.array(self.seen[kind][clock_mhz])
            found = self._deviations[kind, clock_mhz] = np.abs(own / median(own) - 1)
        return found


def _log_mean(samples: Sequence[float]) -> float:
    typical = trimmed_mean(samples)
    return math.log(typical) if typical > SHORTEST_S else LOWEST_MEAN


def trimmed_mean(samples: Sequence[float]) -> float:
    """Mean without the smallest and largest tenth; the median of up to four."""
    ordered = sorted(samples)
    if len(ordered) < 5:
        middle = len(ordered) // 2
        return (ordered[middle] + ordered[-1 - middle]) / 2
    cut = len(ordered) // 10
    kept = ordered[cut : len(ordered) - cut]
    return math.fsum(kept) / len(kept)
