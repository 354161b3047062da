"""Who shares a clock: the groups of the relaxation, for free clocks and for a given cut."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from perseusd.core.graph import Graph
from perseusd.core.model import Plan, Problem
from perseusd.core.planner.hull import lower_hull
from perseusd.core.planner.instance import Options
from perseusd.core.planner.relax import Group
from perseusd.core.planner.runs import spans

Ints = NDArray[np.intp]


def free(problem: Problem, graph: Graph) -> list[Group]:
    """A group of its own for every computation, on the hull of its own curve."""
    points = {}
    for kind in graph.kinds:
        options = Options.of([problem.curves[kind]], problem.blocking_power_w[kind.rank])
        time, cost = options.time[0], options.cost[0]
        hull = lower_hull(time, cost)
        points[kind] = (time[None, hull], cost[hull])
    return [
        Group(np.array([node]), np.zeros(1, dtype=np.intp), *points[computation.kind])
        for node, computation in enumerate(graph.nodes)
    ]


def of_plan(problem: Problem, graph: Graph, plan: Plan) -> list[Group]:
    """A group for every run of the plan: what changes clocks only where this plan does.

    Where the plan writes nothing at the iteration's start or end, the run there has no clock of
    its own: it stays at full clock where the rank's iteration ends at it, otherwise it shares the
    clock of the run at the other end.
    """
    return [
        _group(problem, graph, nodes, pinned)
        for rank_nodes, clocks in zip(graph.order, plan.clocks, strict=True)
        for nodes, pinned in _shared(rank_nodes, clocks, problem.full_clock_at_end)
    ]


def _shared(
    nodes: Ints, clocks: Sequence[int | None], full_clock_at_end: bool
) -> list[tuple[Ints, bool]]:
    """(nodes, pinned to full clock) of every group on one rank."""
    runs = spans(clocks)
    groups = [
        (nodes[a:b], full_clock_at_end and clocks[a] is None and (a == 0 or b == len(nodes)))
        for a, b in runs
    ]
    if not full_clock_at_end and len(runs) > 1 and clocks[0] == clocks[-1]:
        first, last = groups[0], groups.pop()
        groups[0] = (np.concatenate([first[0], last[0]]), False)
    return groups


def _group(problem: Problem, graph: Graph, nodes: Ints, pinned: bool) -> Group:
    kinds, row, count = np.unique(graph.kind_index[nodes], return_inverse=True, return_counts=True)
    curves = [problem.curves[graph.kinds[k]] for k in kinds.tolist()]
    options = Options.of(curves, problem.blocking_power_w[int(graph.rank[nodes[0]])])
    kept = slice(-1, None) if pinned else slice(None)
    return Group(nodes, row, options.time[:, kept], (count @ options.cost)[kept])
