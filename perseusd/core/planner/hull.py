"""The lower convex hull of measured points: where a relaxed clock lies."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


def lower_hull(time: Floats, cost: Floats) -> Ints:
    """Which of the (points,) lie on the hull, from the fastest to the cheapest.

    Points slower than the cheapest are never worth their time and are left out, so both the hull's
    times ascend and its costs descend, ever less steeply. Any order of points, any noise.
    """
    kept: list[int] = []
    for k in np.lexsort((cost, time)).tolist():
        if kept and cost[k] >= cost[kept[-1]]:
            continue
        while len(kept) > 1 and not _turns_up(time, cost, kept[-2], kept[-1], k):
            kept.pop()
        kept.append(k)
    return np.array(kept, dtype=np.intp)


def curvature(time: Floats, cost: Floats) -> float:
    """How fast the slope of (points,) on a hull changes, in J/s², at least its mean slope's."""
    if len(time) < 2:
        return 0.0
    slope = np.diff(cost) / np.diff(time)
    change = max(float(slope[-1] - slope[0]), float(np.abs(slope).mean()))
    return change / float(time[-1] - time[0])


def _turns_up(time: Floats, cost: Floats, a: int, b: int, c: int) -> bool:
    """Is b strictly below the line from a to c?"""
    return bool(
        (cost[b] - cost[a]) * (time[c] - time[a]) < (cost[c] - cost[a]) * (time[b] - time[a])
    )
