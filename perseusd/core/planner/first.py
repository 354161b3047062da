"""First plans on real clocks, from a relaxation's durations."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from perseusd.core.planner import first_kernels as kernels
from perseusd.core.planner.instance import Instance
from perseusd.core.planner.network import Network
from perseusd.core.planner.points import Points
from perseusd.core.planner.relax import Relaxed

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
_Walk = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], Floats]

_LATE = 1e-12
# Shares of the price at which computations are placed one after another. Below 1 they come out
# slower than the relaxation has them while there is room; at 1 room is left over at the end.
_PRICE_SHARES = (0.6, 0.7, 0.8, 0.86, 0.9, 0.94, 0.98)


def placed(inst: Instance, relaxed: Relaxed) -> Ints:
    """(n,) options, free for each, that are not late without noise; the cheapest of a few tries.

    In topological order, at its actual start, each computation takes the point of least cost plus
    a share of the price of its time that ends by the relaxation's latest finish; and the same
    backward in time, from the relaxation's earliest starts. What slack is left is then filled.
    """
    points, network = Points.of(inst), inst.network
    tries = [
        _filled(inst, points, chosen)
        for share in _PRICE_SHARES
        for chosen in _placements(inst, points, relaxed, share)
    ]
    fullest = points.choice[network.kind, inst.full]
    on_time = [c for c in tries if _makespan(inst, points, c) <= inst.tightest_s * (1 + _LATE)]
    best = min([*on_time, fullest], key=lambda c: points.total_cost(network.kind, c))
    option: Ints = points.option[network.kind, best].astype(np.intp)
    return option


def _placements(
    inst: Instance, points: Points, relaxed: Relaxed, share: float
) -> Iterator[NDArray[np.int64]]:
    """(n,) points, placed forward and backward; perhaps late."""
    price = relaxed.price * share
    for step in (1, -1):
        # How much time the relaxation leaves in the direction of the walk: its latest finish.
        limit = inst.tightest_s - _ends(inst, relaxed.durations, -step) + relaxed.durations
        yield _place(inst, points, step, price, limit)


def _filled(inst: Instance, points: Points, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) points, no dearer: each the cheapest that the others' leave time for, in turn."""
    durations = points.time[inst.network.kind, chosen]
    limit = inst.tightest_s - _ends(inst, durations, -1) + durations
    return _place(inst, points, 1, np.zeros(len(limit)), limit)


def _place(
    inst: Instance, points: Points, step: int, price: Floats, limit: Floats
) -> NDArray[np.int64]:
    chosen = np.zeros(len(limit), dtype=np.int64)
    first, edge, before, lag = _walk(inst.network, step)
    menu = points.time, points.cost, points.count
    kernels.place(step, first, edge, before, lag, inst.network.kind, *menu, price, limit, chosen)
    return chosen


def _makespan(inst: Instance, points: Points, chosen: NDArray[np.int64]) -> float:
    return float(_ends(inst, points.time[inst.network.kind, chosen], 1).max())


def _ends(inst: Instance, durations: Floats, step: int) -> Floats:
    """(n,) time from the iteration's start to each end; step −1: from each start to its end."""
    end = np.zeros(len(durations))
    first, edge, before, lag = _walk(inst.network, step)
    kernels.ends(step, first, edge, before, lag, durations, end)
    return end


def _walk(
    network: Network, step: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], Floats]:
    """What comes before each node on a walk through time, forward (1) or backward (−1)."""
    if step > 0:
        return network.into_first, network.into_edge, network.tail, network.lag
    return network.from_first, network.from_edge, network.head, network.lag
