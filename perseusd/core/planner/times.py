"""When computations can start, and durations that keep a deadline: walks through the network."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from perseusd.core.planner.compiled import compiled
from perseusd.core.planner.hulls import Hulls
from perseusd.core.planner.network import Network

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def earliest_starts(network: Network, durations: Floats) -> Floats:
    """(n,) the iteration starting at 0."""
    start = np.empty(len(network))
    earliest(network.into_first, network.into_edge, network.tail, network.lag, durations, start)
    return start


def latest_starts(network: Network, durations: Floats, deadline_s: float) -> Floats:
    """(n,) at which everything still ends by the deadline."""
    start = np.empty(len(network))
    latest(
        network.from_first,
        network.from_edge,
        network.head,
        network.lag,
        durations,
        deadline_s,
        start,
    )
    return start


def makespan(network: Network, durations: Floats) -> float:
    return float((earliest_starts(network, durations) + durations).max())


def fitted(network: Network, hulls: Hulls, ends: Floats, deadline_s: float) -> tuple[Floats, float]:
    """(n,) durations on the hulls that keep the deadline, and what they cost.

    Each computation ends when (n,) `ends` says, or sooner where what follows it could not be in
    time even at its fastest, or later where its own fastest asks for that.
    """
    fastest = hulls.time[hulls.first[:-1]][network.kind]
    limit = latest_starts(network, fastest, deadline_s) + fastest
    np.minimum(limit, ends, out=limit, where=np.isfinite(ends))
    durations = np.empty(len(network))
    cost = fit(
        network.into_first,
        network.into_edge,
        network.tail,
        network.lag,
        network.kind,
        hulls.first,
        hulls.time,
        hulls.cost,
        limit,
        durations,
    )
    return durations, cost


@compiled("void(i8[::1], i8[::1], i8[::1], f8[::1], f8[::1], f8[::1])")
def earliest(
    into_first: Ints, into_edge: Ints, tail: Ints, lag: Floats, duration: Floats, start: Floats
) -> None:
    """Writes (n,) `start`."""
    for i in range(len(start)):
        start[i] = 0.0
        for b in range(into_first[i], into_first[i + 1]):
            e = into_edge[b]
            start[i] = max(start[i], start[tail[e]] + duration[tail[e]] + lag[e])


@compiled("void(i8[::1], i8[::1], i8[::1], f8[::1], f8[::1], f8, f8[::1])")
def latest(
    from_first: Ints,
    from_edge: Ints,
    head: Ints,
    lag: Floats,
    duration: Floats,
    deadline: float,
    start: Floats,
) -> None:
    """Writes (n,) `start`."""
    for i in range(len(start) - 1, -1, -1):
        end = deadline
        for a in range(from_first[i], from_first[i + 1]):
            e = from_edge[a]
            end = min(end, start[head[e]] - lag[e])
        start[i] = end - duration[i]


@compiled(
    "f8(i8[::1], i8[::1], i8[::1], f8[::1], i8[::1], i8[::1], f8[::1], f8[::1], f8[::1], f8[::1])"
)
def fit(
    into_first: Ints,
    into_edge: Ints,
    tail: Ints,
    lag: Floats,
    kind: Ints,
    hull_first: Ints,
    hull_time: Floats,
    hull_cost: Floats,
    end: Floats,
    duration: Floats,
) -> float:
    """Cost. Writes (n,) `duration`; `end`: (n,) wanted, overwritten with what they come to be."""
    cost = 0.0
    for i in range(len(kind)):
        begin = 0.0
        for b in range(into_first[i], into_first[i + 1]):
            e = into_edge[b]
            begin = max(begin, end[tail[e]] + lag[e])
        low, high = hull_first[kind[i]], hull_first[kind[i] + 1] - 1
        duration[i] = min(max(end[i] - begin, hull_time[low]), hull_time[high])
        end[i] = begin + duration[i]
        while high - low > 1:
            middle = (low + high) // 2
            if hull_time[middle] <= duration[i]:
                low = middle
            else:
                high = middle
        cost += hull_cost[low]
        if high > low:
            share = (duration[i] - hull_time[low]) / (hull_time[high] - hull_time[low])
            cost += share * (hull_cost[high] - hull_cost[low])
    return cost
