"""First plans on real clocks, from a relaxation's durations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from perseusd.core.planner.instance import Instance
from perseusd.core.planner.relax import Group, Relaxed

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

_HALVINGS = 8  # of the share of the slowdown that is not late
_LATE = 1e-12
# Shares of the price at which computations are placed one after another. Below 1 they come out
# slower than the relaxation has them while there is room; at 1 room is left over at the end.
_PRICE_SHARES = (0.6, 0.7, 0.8, 0.86, 0.9, 0.94, 0.98)


def rounded(inst: Instance, groups: Sequence[Group], durations: Floats) -> Ints:
    """(n,) the real option nearest in time to (n,) durations, one for each group."""
    option = inst.full.copy()
    for group in groups:
        nodes = group.members
        if len(group.cost) > 1:  # one point: it is pinned to full clock
            away = ((inst.time[nodes] - durations[nodes, None]) ** 2).sum(axis=0)
            option[nodes] = int(away[: int(inst.full[nodes[0]]) + 1].argmin())
    return option


def not_late(inst: Instance, groups: Sequence[Group], durations: Floats) -> Ints:
    """(n,) options, one for each group, with the largest share of the slowdown that is not late.

    Full clock is never late, so the share is at least 0.
    """
    fastest = inst.durations(inst.full)
    best, low, high = inst.full, 0.0, 1.0
    for _ in range(_HALVINGS):
        share = (low + high) / 2
        option = rounded(inst, groups, fastest + share * (durations - fastest))
        if inst.mean_makespan(option) <= inst.deadline_s * (1 + _LATE):
            best, low = option, share
        else:
            high = share
    return best


def placed(inst: Instance, relaxed: Relaxed) -> Ints:
    """(n,) options, free for each, that are not late without noise; the cheapest of a few tries.

    In topological order, at its actual start, each computation takes the point of least cost plus
    a share of the price of its time that ends by the relaxation's latest finish.
    """
    latest = inst.graph.latest(relaxed.durations, inst.tightest_s) + relaxed.durations
    tries = [_placed(inst, relaxed.price * share, latest) for share in _PRICE_SHARES]
    return min(tries, key=inst.total_cost)


def _placed(inst: Instance, price: Floats, latest: Floats) -> Ints:
    graph, priced = inst.graph, inst.cost + price[:, None] * inst.time
    end = np.zeros(len(graph))
    option = inst.full.copy()
    for node in range(len(graph)):
        start = max(
            (end[graph.tail[e]] + graph.lag[e] for e in graph.edges_into[node]), default=0.0
        )
        fits = inst.time[node] <= latest[node] - start
        if fits.any():
            option[node] = min(int(np.where(fits, priced[node], np.inf).argmin()), inst.full[node])
        end[node] = start + inst.time[node, option[node]]
    return option
