"""What a flow through the graph proves about every plan: a lower bound by weak duality.

Any flow f ≥ 0 that conserves, with φ(i) what leaves computation i and Φ what passes the deadline D,
proves of every assignment of points p to groups g (relax.py; a group may be one computation)

    cost ≥ Σ_g min_p [ cost(g, p) + Σ_{i in g} φ(i) · time(k(i), p) ]
           + Σ f(i, j) · lag(i, j) − D · Φ

so that a solver's inaccuracy can loosen the bound but never break it. All that has to be believed
of a bound is `certified_bound` (for groups, `certified_group_bound`) and what it calls: plain array
code that shares nothing with what finds flows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from perseusd.core.graph import Graph
from perseusd.core.planner.compiled import compiled
from perseusd.core.planner.hulls import Hulls
from perseusd.core.planner.network import Network
from perseusd.core.planner.relax import Group, Relaxed, relax
from perseusd.errors import PlanningError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_LEAK = 1e-9  # of the largest flow: what may get lost at a computation, which the bound then pays
_SUMMING = 1e-13  # of a sum's terms: more than its rounding, which the bound pays too


def certified_bound(
    network: Network, hulls: Hulls, deadline_s: float, edge_flow: Floats, last_flow: Floats
) -> float:
    """The least cost that this flow proves where every computation has a clock of its own.

    edge_flow: (edges,), last_flow: (n,), both ≥ 0; what leaves a node must be at least what
    enters it (starts are ≥ 0). Raises PlanningError for a flow that proves nothing.
    """
    price = checked_price(network, edge_flow, last_flow)
    terms = [np.array([timing_value(network, deadline_s, edge_flow, last_flow, price)])]
    for kind in range(len(hulls.first) - 1):
        points = slice(hulls.first[kind], hulls.first[kind + 1])
        priced = price[network.kind == kind, None] * hulls.time[points] + hulls.cost[points]
        terms.append(priced.min(axis=1))
    return _sum_from_below(np.concatenate(terms))


def certified_group_bound(
    network: Network,
    groups: Sequence[Group],
    deadline_s: float,
    edge_flow: Floats,
    last_flow: Floats,
) -> float:
    """The same where computations share clocks. Every node is in exactly one group."""
    price = checked_price(network, edge_flow, last_flow)
    terms = [timing_value(network, deadline_s, edge_flow, last_flow, price)]
    for group in groups:
        at_kind = np.bincount(group.kind, price[group.members], minlength=len(group.time))
        terms.append(float((group.cost + at_kind @ group.time).min()))
    return _sum_from_below(np.array(terms))


def checked_price(network: Network, edge_flow: Floats, last_flow: Floats) -> Floats:
    """(n,) φ, what leaves each node. Raises PlanningError for a flow that proves nothing."""
    price = _outflow(network, edge_flow, last_flow)
    inflow = np.bincount(network.head, edge_flow, minlength=len(network))
    leak = _LEAK * max(1.0, float(price.max(initial=0.0)))
    least = min(edge_flow.min(initial=0.0), last_flow.min(initial=0.0))
    # Asked so that what is no number fails.
    if not (least >= 0.0 and (price >= inflow - leak).all()):
        raise PlanningError("this flow loses or owes something at a computation: it proves nothing")
    return price


def timing_value(
    network: Network, deadline_s: float, edge_flow: Floats, last_flow: Floats, price: Floats
) -> float:
    """The bound's terms of lags and of the deadline, by when every start lies.

    What gets lost at a node is worth at most the deadline.
    """
    inflow = np.bincount(network.head, edge_flow, minlength=len(network))
    lost = float(np.maximum(inflow - price, 0.0).sum())
    return float((edge_flow * network.lag).sum()) - deadline_s * (float(last_flow.sum()) + lost)


def least_cost(
    graph: Graph, groups: Sequence[Group], deadline_s: float, relaxed: Relaxed | None = None
) -> float:
    """Below this no assignment of points to groups costs less by the deadline, without noise.

    relaxed: the relaxation's solution for the same groups and deadline, where there is one.
    """
    relaxed = relaxed or relax(graph, groups, deadline_s)
    network = Network.of(graph)
    flow = conserved(network, relaxed.edge_flow[0], relaxed.last_flow[0])
    return certified_group_bound(network, groups, deadline_s, *flow)


def conserved(network: Network, edge_flow: Floats, last_flow: Floats) -> tuple[Floats, Floats]:
    """The nearest flow that conserves: each node passes on what it got, in the same proportions.

    A node that nothing precedes keeps what it sends. What is negative or no number counts as 0.
    """
    edge, last = _usable(edge_flow), _usable(last_flow)
    pass_on(
        network.into_first, network.into_edge, network.from_first, network.from_edge, edge, last
    )
    return edge, last


@compiled("void(i8[::1], i8[::1], i8[::1], i8[::1], f8[::1], f8[::1])")
def pass_on(
    into_first: Ints,
    into_edge: Ints,
    from_first: Ints,
    from_edge: Ints,
    edge: Floats,
    last: Floats,
) -> None:
    """Node by node scale what leaves it, edge (edges,) and last (n,), in place."""
    for i in range(len(last)):
        if into_first[i] == into_first[i + 1]:
            continue
        got, sent = 0.0, last[i]
        for b in range(into_first[i], into_first[i + 1]):
            got += edge[into_edge[b]]
        for a in range(from_first[i], from_first[i + 1]):
            sent += edge[from_edge[a]]
        if sent > 0.0:
            last[i] *= got / sent
            for a in range(from_first[i], from_first[i + 1]):
                edge[from_edge[a]] *= got / sent
        elif from_first[i] < from_first[i + 1]:
            edge[from_edge[from_first[i]]] = got
        else:
            last[i] = got


def _usable(flow: Floats) -> Floats:
    return np.where(np.isfinite(flow) & (flow > 0.0), flow, 0.0)


def _outflow(network: Network, edge_flow: Floats, last_flow: Floats) -> Floats:
    out: Floats = np.bincount(network.tail, edge_flow, minlength=len(network)) + last_flow
    return out


def _sum_from_below(terms: Floats) -> float:
    return float(terms.sum() - _SUMMING * np.abs(terms).sum())
