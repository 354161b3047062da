"""The lower hull of every kind's curve, as flat arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perseusd.core.graph import Graph
from perseusd.core.model import Problem
from perseusd.core.planner.compiled import compiled

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Hulls:
    """Where a relaxed clock lies: per kind, from the fastest point to the cheapest.

    first: (kinds + 1,): kind k's points are first[k] to first[k + 1] (exclusive), at least one.
    time, cost: (points,): times ascend, costs descend, ever less steeply, within a kind.
    option: (points,) which option of a kind with a clock of its own (instance.py) each point is.
    """

    first: Ints
    time: Floats
    cost: Floats
    option: Ints

    @classmethod
    def of(cls, problem: Problem, graph: Graph) -> Hulls:
        """The hulls of the kinds of `graph`, each of its own curve's points."""
        curves = [problem.curves[kind] for kind in graph.kinds]
        power = [float(problem.blocking_power_w[kind.rank]) for kind in graph.kinds]
        sizes = [len(curve.time_s) for curve in curves]
        first = np.cumsum([0, *sizes], dtype=np.int64)
        time = np.concatenate([curve.time_s for curve in curves])
        energy = np.concatenate([curve.energy_j for curve in curves])
        return cls.of_points(first, time, energy - np.repeat(power, sizes) * time)

    @classmethod
    def of_points(cls, first: Ints, time: Floats, cost: Floats) -> Hulls:
        """Kind k's points, by ascending clock, are first[k] to first[k + 1] (exclusive)."""
        kind = np.repeat(np.arange(len(first) - 1), np.diff(first))
        order = np.lexsort((-np.arange(len(time)), cost, time, kind))
        hull, size, option = lower_hulls(first, order, time, cost)
        ends = np.cumsum(np.append(0, size))
        return cls(ends, time[hull], cost[hull], option[hull])


@compiled("Tuple((i8[::1], i8[::1], i8[::1]))(i8[::1], i8[::1], f8[::1], f8[::1])")
def lower_hulls(first: Ints, order: Ints, time: Floats, cost: Floats) -> tuple[Ints, Ints, Ints]:
    """The points on each kind's hull, one kind after another; (kinds,) how many; (points,) options.

    order: (points,) kind by kind, by time, then cost, then descending clock. A point that another
    one equals or beats in time and cost is no option, but the last (full clock) always is one.
    """
    hull = np.empty(len(time), dtype=np.int64)
    size = np.zeros(len(first) - 1, dtype=np.int64)
    option = np.full(len(time), -1, dtype=np.int64)
    used = 0
    for kind in range(len(first) - 1):
        begin = used
        least = np.inf
        for k in order[first[kind] : first[kind + 1]]:
            if cost[k] >= least:
                continue
            least = cost[k]
            option[k] = 0
            while used - begin > 1:
                a, b = hull[used - 2], hull[used - 1]
                if (cost[b] - cost[a]) * (time[k] - time[a]) < (cost[k] - cost[a]) * (
                    time[b] - time[a]
                ):
                    break
                used -= 1
            hull[used] = k
            used += 1
        size[kind] = used - begin
        option[first[kind + 1] - 1] = 0
        count = 0
        for k in range(first[kind], first[kind + 1]):
            if option[k] == 0:
                option[k] = count
                count += 1
    return hull[:used].copy(), size, option
