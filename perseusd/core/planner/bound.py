"""What a flow through the graph proves about every plan: a lower bound by weak duality.

Any flow f ≥ 0 that conserves, with φ(i) what leaves computation i and Φ what passes the deadline D,
proves of every assignment of points p to groups g (relax.py)

    cost ≥ Σ_g min_p [ cost(g, p) + Σ_{i in g} φ(i) · time(k(i), p) ]
           + Σ f(i, j) · lag(i, j) − D · Φ

so that a solver's inaccuracy can loosen the bound but never break it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from perseusd.core.graph import Graph
from perseusd.core.planner.relax import Group, Relaxed, relax
from perseusd.errors import PlanningError

Floats = NDArray[np.float64]


def least_cost(
    graph: Graph, groups: Sequence[Group], deadline_s: float, relaxed: Relaxed | None = None
) -> float:
    """Below this no assignment of points to groups costs less by the deadline, without noise.

    relaxed: the relaxation's solution for the same groups and deadline, where there is one.
    """
    relaxed = relaxed or relax(graph, groups, deadline_s)
    edge, last = conserved(graph, relaxed.edge_flow[0], relaxed.last_flow[0])
    return certified_bound(graph, groups, deadline_s, edge, last)


def certified_bound(
    graph: Graph, groups: Sequence[Group], deadline_s: float, edge_flow: Floats, last_flow: Floats
) -> float:
    """The least cost that this flow proves, by the inequality at the head of this file.

    edge_flow: (edges,), last_flow: (n,), both ≥ 0; what leaves a node must be at least what
    enters it (starts are ≥ 0). Raises PlanningError for a flow that proves nothing.
    """
    price = _outflow(graph, edge_flow, last_flow)
    inflow = np.bincount(graph.head, edge_flow, minlength=len(graph))
    rounding = 1e-9 * max(1.0, float(price.max(initial=0.0)))
    if min(edge_flow.min(initial=0.0), last_flow.min()) < 0 or (price < inflow - rounding).any():
        raise PlanningError("this flow loses or owes something at a computation: it proves nothing")
    total = float(edge_flow @ graph.lag) - deadline_s * float(last_flow.sum())
    for group in groups:
        at_kind = np.bincount(group.kind, price[group.members], minlength=len(group.time))
        total += float((group.cost + at_kind @ group.time).min())
    return total


def conserved(graph: Graph, edge_flow: Floats, last_flow: Floats) -> tuple[Floats, Floats]:
    """The nearest flow that conserves: each node passes on what it got, in the same proportions.

    A node that nothing precedes keeps what it sends.
    """
    leaving = graph.edges_from
    edge, last = np.maximum(edge_flow, 0.0).tolist(), np.maximum(last_flow, 0.0).tolist()
    inflow = [0.0] * len(graph)
    preceded = np.bincount(graph.head, minlength=len(graph)).tolist()
    heads = graph.head.tolist()
    for node in range(len(graph)):
        sent = sum(edge[e] for e in leaving[node]) + last[node]
        if preceded[node]:
            _pass_on(inflow[node], sent, leaving[node], edge, last, node)
        for e in leaving[node]:
            inflow[heads[e]] += edge[e]
    return np.array(edge), np.array(last)


def _pass_on(
    got: float, sent: float, leaving: Sequence[int], edge: list[float], last: list[float], node: int
) -> None:
    if sent > 0.0:
        share = got / sent
        last[node] *= share
        for e in leaving:
            edge[e] *= share
    elif leaving:
        edge[leaving[0]] = got
    else:
        last[node] = got


def _outflow(graph: Graph, edge_flow: Floats, last_flow: Floats) -> Floats:
    out: Floats = np.bincount(graph.tail, edge_flow, minlength=len(graph)) + last_flow
    return out
