"""Kernels of the first plan. Shapes and names are those of Network and Points."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from perseusd.core.planner.compiled import compiled

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@compiled(
    "void(i8, i8[::1], i8[::1], i8[::1], f8[::1], i8[::1], f8[:,::1], f8[:,::1], i8[::1],"
    " f8[::1], f8[::1], i8[::1])"
)
def place(
    step: int,
    first: Ints,
    edge: Ints,
    before: Ints,
    lag: Floats,
    kind: Ints,
    time: Floats,
    cost: Floats,
    count: Ints,
    price: Floats,
    limit: Floats,
    chosen: Ints,
) -> None:
    """One after another, at its actual start, each takes the point of least cost + price · time
    that ends by its limit, or the fastest where none does.

    step: 1 goes forward in time; −1 backward: then first, edge and before lead to what follows,
        and times count back from the deadline.
    """
    n = len(kind)
    end = np.zeros(n)
    for at in range(n):
        i = at if step > 0 else n - 1 - at
        start = 0.0
        for x in range(first[i], first[i + 1]):
            e = edge[x]
            start = max(start, end[before[e]] + lag[e])
        k = kind[i]
        best, least = 0, np.inf
        for p in range(count[k]):
            if start + time[k, p] > limit[i]:
                break
            value = cost[k, p] + price[i] * time[k, p]
            if value <= least:
                best, least = p, value
        chosen[i] = best
        end[i] = start + time[k, best]


@compiled("void(i8, i8[::1], i8[::1], i8[::1], f8[::1], f8[::1], f8[::1])")
def ends(
    step: int, first: Ints, edge: Ints, before: Ints, lag: Floats, duration: Floats, end: Floats
) -> None:
    """(n,) earliest ends; backward (see `place`): how long before the deadline to start at last."""
    n = len(duration)
    for at in range(n):
        i = at if step > 0 else n - 1 - at
        start = 0.0
        for x in range(first[i], first[i + 1]):
            e = edge[x]
            start = max(start, end[before[e]] + lag[e])
        end[i] = start + duration[i]
