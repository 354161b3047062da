"""The measured points worth choosing from, kind by kind, from the fastest to the cheapest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perseusd.core.planner.compiled import compiled
from perseusd.core.planner.instance import Instance

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Points:
    """Undominated points of P at most for each kind: times ascend, costs descend.

    time, cost: (kinds, P), padded with inf.  option: (kinds, P) each point's option.
    count: (kinds,) how many points there are.
    choice: (kinds, C) for each option its point: the cheapest that takes no longer.
    """

    time: Floats
    cost: Floats
    option: Ints
    count: Ints
    choice: Ints

    @classmethod
    def of(cls, inst: Instance) -> Points:
        """From options padded with full clock, which may be dominated itself."""
        kinds, width = inst.kind_time.shape
        time = np.full((kinds, width), np.inf)
        cost = np.full((kinds, width), np.inf)
        option = np.zeros((kinds, width), dtype=np.int64)
        count = np.zeros(kinds, dtype=np.int64)
        choice = np.zeros((kinds, width), dtype=np.int64)
        for kind, clocks in enumerate(inst.kind_clocks):
            times, costs = inst.kind_time[kind, : len(clocks)], inst.kind_cost[kind, : len(clocks)]
            order = np.lexsort((costs, times))
            least = np.minimum.accumulate(np.append(np.inf, costs[order][:-1]))
            kept = order[costs[order] < least]
            found = count[kind] = len(kept)
            time[kind, :found], cost[kind, :found] = times[kept], costs[kept]
            option[kind, :found] = kept
            fits = np.searchsorted(times[kept], times, side="right") - 1
            choice[kind, : len(clocks)] = fits
            choice[kind, len(clocks) :] = fits[-1]
        return cls(time, cost, option, count, choice)

    def total_cost(self, kind: Ints, chosen: Ints) -> float:
        """Joules of (n,) computations of these kinds at (n,) points."""
        return float(self.cost[kind, chosen].sum())

    def spread(self) -> Floats:
        """(kinds,) seconds from the fastest point to the slowest."""
        slowest = self.time[np.arange(len(self.count)), self.count - 1]
        spread: Floats = slowest - self.time[:, 0]
        return spread

    def around(self, kind: Ints, price: Floats, points: int, corners: int) -> tuple[Ints, Ints]:
        """(n,) first and last point: see find_bands."""
        low, high = np.empty(len(kind), dtype=np.int64), np.empty(len(kind), dtype=np.int64)
        find_bands(kind, self.time, self.cost, self.count, price, points, corners, low, high)
        return low, high


@compiled("void(i8[::1], f8[:,::1], f8[:,::1], i8[::1], f8[::1], i8, i8, i8[::1], i8[::1])")
def find_bands(
    kind: Ints,
    time: Floats,
    cost: Floats,
    count: Ints,
    price: Floats,
    points: int,
    corners: int,
    low: Ints,
    high: Ints,
) -> None:
    """(n,) low, high: the points to choose from, around the one of least cost + price · time.

    At least so many points and so many corners of the kind's lower hull to either side.
    """
    kinds, width = time.shape
    corner = np.empty((kinds, width), np.int64)
    found = np.zeros(kinds, np.int64)
    for k in range(kinds):
        for p in range(count[k]):
            while found[k] > 1:
                a, b = corner[k, found[k] - 2], corner[k, found[k] - 1]
                if (cost[k, b] - cost[k, a]) * (time[k, p] - time[k, a]) < (
                    cost[k, p] - cost[k, a]
                ) * (time[k, b] - time[k, a]):
                    break
                found[k] -= 1
            corner[k, found[k]] = p
            found[k] += 1
    for i in range(len(kind)):
        k = kind[i]
        at, least = 0, np.inf
        for c in range(found[k]):
            p = corner[k, c]
            value = cost[k, p] + price[i] * time[k, p]
            if value <= least:
                at, least = c, value
        center = corner[k, at]
        low[i] = min(max(0, center - points), corner[k, max(0, at - corners)])
        high[i] = max(
            min(count[k] - 1, center + points), corner[k, min(found[k] - 1, at + corners)]
        )
