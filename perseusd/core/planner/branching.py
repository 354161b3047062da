"""Small jobs with free clocks, by branch and bound: where chains of steps may stop short.

Computations are assigned one after another in topological order at their earliest start. What the
rest costs at least follows from the relaxation's flow f with prices φ (bound.py): with ends e(i) of
those assigned, every way to go on costs at least

    Σ_j min_p [cost(j, p) + φ(j) · time(j, p)] − D · Σ_j Φ(j) + Σ f(i, j) · (e(i) + lag(i, j))

over all j that are left; e(i) is 0 where i is left too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from perseusd.core.planner.compiled import compiled
from perseusd.core.planner.network import Network
from perseusd.core.planner.points import Points
from perseusd.core.planner.relax import Relaxed

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def branched(
    network: Network, points: Points, relaxed: Relaxed, deadline_s: float, best: Ints, most: int
) -> Ints:
    """(n,) points that are not late and cost no more than (n,) `best`, which is not late.

    The cheapest there are, unless more than so many (`most`) assignments had to be tried.
    """
    chosen = best.copy()
    _branch(
        (network.into_first, network.into_edge, network.from_first, network.from_edge),
        (network.tail, network.head, network.kind, points.count),
        (network.lag, relaxed.edge_flow[0], relaxed.last_flow[0], relaxed.price),
        (points.time, points.cost),
        deadline_s,
        most,
        chosen,
    )
    return chosen


@compiled(
    "void(UniTuple(i8[::1], 4), UniTuple(i8[::1], 4), UniTuple(f8[::1], 4),"
    " UniTuple(f8[:,::1], 2), f8, i8, i8[::1])"
)
def _branch(
    edges: tuple[Ints, ...],
    nodes: tuple[Ints, ...],
    flow: tuple[Floats, ...],
    menu: tuple[Floats, ...],
    deadline: float,
    most: int,
    chosen: Ints,
) -> None:
    """Depth first, the points of least priced cost first; see `branched`."""
    into_first, into_edge, from_first, from_edge = edges
    tail, head, kind, count = nodes
    lag, through, last, price = flow
    time, cost = menu
    n = len(kind)
    least = np.empty(n)  # priced cost
    value = np.empty(time.shape[1])
    order = np.empty((n, time.shape[1]), np.int64)
    after = np.zeros(n)  # from each end, how long at the fastest
    passed_on = np.zeros(n)
    best, lags = 0.0, 0.0
    for i in range(n - 1, -1, -1):
        k = kind[i]
        best += cost[k, chosen[i]]
        for p in range(count[k]):
            value[p] = cost[k, p] + price[i] * time[k, p]
            at = p
            while at > 0 and value[order[i, at - 1]] > value[p]:
                order[i, at] = order[i, at - 1]
                at -= 1
            order[i, at] = p
        least[i] = value[order[i, 0]]
        for x in range(from_first[i], from_first[i + 1]):
            e = from_edge[x]
            passed_on[i] += through[e]
            lags += through[e] * lag[e]
            after[i] = max(after[i], lag[e] + time[kind[head[e]], 0] + after[head[e]])
    enough = best - 1e-12 * abs(best)
    bound = np.empty(n + 1)
    bound[0] = lags
    for i in range(n):
        bound[0] += least[i] - deadline * last[i]
    start, owed = np.zeros(n), np.zeros(n)
    end = np.zeros(n)
    tried = np.zeros(n, np.int64)
    point = np.zeros(n, np.int64)
    i, steps = 0, 0
    while i >= 0 and steps < most:
        k = kind[i]
        if tried[i] == 0:
            start[i], owed[i] = 0.0, 0.0
            for x in range(into_first[i], into_first[i + 1]):
                e = into_edge[x]
                start[i] = max(start[i], end[tail[e]] + lag[e])
                owed[i] += through[e] * (end[tail[e]] + lag[e])
        if tried[i] == count[k]:
            tried[i] = 0
            i -= 1
            continue
        p = order[i, tried[i]]
        tried[i] += 1
        steps += 1
        end[i] = start[i] + time[k, p]
        bound[i + 1] = (
            bound[i]
            + (cost[k, p] - least[i])
            + passed_on[i] * end[i]
            + last[i] * deadline
            - owed[i]
        )
        if end[i] + after[i] > deadline or bound[i + 1] >= enough:
            continue
        point[i] = p
        if i + 1 < n:
            i += 1
            continue
        total = 0.0
        for j in range(n):
            total += cost[kind[j], point[j]]
        if total < enough:
            enough = total - 1e-12 * abs(total)
            for j in range(n):
                chosen[j] = point[j]
