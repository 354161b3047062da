"""Measured points of one computation → its time and energy at every clock a GPU supports.

Between points: monotone cubic Hermite (PCHIP: Fritsch and Butland 1984, the weighted harmonic mean
of neighbouring slopes), so the emulated GPU follows what was measured and not a formula which a
learner might fit. Measured times wobble where clock or power cap hardly matter; the longest run of
points along which time falls with the clock is kept, unchanged, and the others are left out.

Below the points nothing was measured. There time goes as 1/f, and what power exceeds blocking
power goes as the root of f: energy per computation rises, as it does at the lowest measured
clocks. Above them nothing changes, as at a power cap.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Sequence

from perseusd.emulation.tables import Points
from perseusd.gpus.physics import WorkCurve

BELOW_RANGE_POWER_EXPONENT = 0.5


def falling_times(points: Points) -> Points:
    """The longest subsequence of points (clock ascending) whose times strictly fall.

    Among equally long ones, one that has the highest clock is preferred.
    """
    descending = points[::-1]
    length = [1] * len(descending)
    previous = [-1] * len(descending)
    for i, point in enumerate(descending):
        for j in range(i):
            if descending[j][1] < point[1] and length[j] + 1 > length[i]:
                length[i], previous[i] = length[j] + 1, j
    at = max(range(len(descending)), key=lambda i: length[i])
    kept = []
    while at >= 0:
        kept.append(descending[at])
        at = previous[at]
    return tuple(kept)


def work_curve(points: Points, clocks_mhz: Sequence[int], blocking_power_w: float) -> WorkCurve:
    """Time and energy at each of `clocks_mhz` (ascending) through the points that are kept."""
    kept = falling_times(points)
    clocks = [float(clock) for clock, _, _ in kept]
    time_slopes = _slopes(clocks, [time for _, time, _ in kept])
    energy_slopes = _slopes(clocks, [energy for _, _, energy in kept])

    def at(clock: int) -> tuple[float, float]:
        low, high = kept[0], kept[-1]
        if clock < low[0]:
            return _below(low, clock, blocking_power_w)
        if clock >= high[0]:
            return high[1], high[2]
        i = bisect_right(clocks, clock) - 1
        time = _hermite(clock, kept[i], kept[i + 1], time_slopes[i : i + 2], 1)
        return time, _hermite(clock, kept[i], kept[i + 1], energy_slopes[i : i + 2], 2)

    values = [at(clock) for clock in clocks_mhz]
    return WorkCurve(tuple(time for time, _ in values), tuple(energy for _, energy in values))


def scaled(points: Points, factor: float) -> Points:
    """Times and energies multiplied by `factor`: the same power for longer."""
    return tuple((clock, time * factor, energy * factor) for clock, time, energy in points)


def _below(
    lowest: tuple[int, float, float], clock: int, blocking_power_w: float
) -> tuple[float, float]:
    lowest_clock, time, energy = lowest
    ratio = clock / lowest_clock
    extra_w = (energy / time - blocking_power_w) * math.pow(ratio, BELOW_RANGE_POWER_EXPONENT)
    time /= ratio
    return time, (blocking_power_w + extra_w) * time


def _slopes(x: Sequence[float], y: Sequence[float]) -> list[float]:
    """PCHIP's derivative at each point; zero at a local extremum, so nothing overshoots."""
    steps = [b - a for a, b in itertools.pairwise(x)]
    secants = [(b - a) / h for (a, b), h in zip(itertools.pairwise(y), steps, strict=True)]
    if not secants:
        return [0.0]
    inner = []
    for i in range(1, len(secants)):
        before, after = secants[i - 1], secants[i]
        if before * after <= 0:
            inner.append(0.0)
            continue
        w1, w2 = 2 * steps[i] + steps[i - 1], steps[i] + 2 * steps[i - 1]
        inner.append((w1 + w2) / (w1 / before + w2 / after))
    return [secants[0], *inner, secants[-1]]


def _hermite(
    x: float,
    left: tuple[int, float, float],
    right: tuple[int, float, float],
    slopes: Sequence[float],
    column: int,
) -> float:
    h = right[0] - left[0]
    t = (x - left[0]) / h
    return (
        (1 + 2 * t) * (1 - t) ** 2 * left[column]
        + t * (1 - t) ** 2 * h * slopes[0]
        + t * t * (3 - 2 * t) * right[column]
        + t * t * (t - 1) * h * slopes[1]
    )
