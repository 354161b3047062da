"""What a flow proves: never more than is true, and nothing at all where it does not conserve."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from perseusd.core.graph import Graph
from perseusd.core.planner.bound import (
    certified_bound,
    certified_group_bound,
    conserved,
    least_cost,
)
from perseusd.core.planner.hulls import Hulls
from perseusd.core.planner.network import Network
from perseusd.core.planner.relax import Group, relax
from perseusd.core.schedules import one_f_one_b, pipeline
from perseusd.errors import PlanningError

Floats = NDArray[np.float64]

TIME, COST = np.array([1.0, 1.5, 2.0]), np.array([10.0, 7.0, 6.0])


def _graph(stages: int, microbatches: int, lag_s: float = 0.0) -> Graph:
    return Graph.from_pipeline(pipeline(one_f_one_b(stages, microbatches), lag_s))


def _groups(graph: Graph) -> list[Group]:
    zero = np.zeros(1, dtype=np.intp)
    return [Group(np.array([node]), zero, TIME[None], COST) for node in range(len(graph))]


def _hulls(graph: Graph) -> Hulls:
    kinds = len(graph.kinds)
    first = 3 * np.arange(kinds + 1)
    return Hulls(first, np.tile(TIME, kinds), np.tile(COST, kinds), np.tile(np.arange(3), kinds))


def test_the_certificate_equals_the_relaxations_cost() -> None:
    """Weak duality is tight at the optimum: what the flow proves is what the mix costs."""
    graph = _graph(3, 4, 0.1)
    network, groups = Network.of(graph), _groups(graph)
    relaxed = relax(graph, groups, 17.0)
    flow = conserved(network, relaxed.edge_flow[0], relaxed.last_flow[0])
    proved = certified_bound(network, _hulls(graph), 17.0, *flow)
    assert proved == pytest.approx(relaxed.cost, rel=1e-4)
    assert proved <= relaxed.cost * (1 + 1e-6)
    assert certified_group_bound(network, groups, 17.0, *flow) == pytest.approx(proved, rel=1e-9)
    assert least_cost(graph, groups, 17.0) == pytest.approx(proved, rel=1e-4)


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=25)
def test_any_conserving_flow_proves_a_bound(seed: int) -> None:
    """However bad the duals, what they prove stays below the true least cost."""
    graph = _graph(2, 3)
    rng = np.random.default_rng(seed)
    edge, last = rng.exponential(3.0, len(graph.tail)), rng.exponential(3.0, len(graph))
    flow = conserved(Network.of(graph), edge, last)
    least = relax(graph, _groups(graph), 9.0).cost
    assert certified_bound(Network.of(graph), _hulls(graph), 9.0, *flow) <= least + 1e-3


def test_a_flow_made_to_conserve_may_be_anything() -> None:
    """Negative flows and no numbers count as none, and what enters a node leaves it."""
    network = Network.of(_graph(2, 3))
    edge, last = np.full(len(network.lag), -1.0), np.full(len(network), np.nan)
    edge[network.from_edge[network.from_first[0]]] = 2.0
    edge, last = conserved(network, edge, last)
    out = np.bincount(network.tail, edge, minlength=len(network)) + last
    into = np.bincount(network.head, edge, minlength=len(network))
    assert out[1:] == pytest.approx(into[1:])
    assert (out[0], last.sum()) == (2.0, pytest.approx(2.0))


def _leak(edge: Floats, last: Floats) -> None:
    last[:] = 0.0


def _owe(edge: Floats, last: Floats) -> None:
    edge[:] *= -1.0
    last[:] *= -1.0


def _lose_count(edge: Floats, last: Floats) -> None:
    edge[0] = np.nan


def _lose_a_little(edge: Floats, last: Floats) -> None:
    last[:] *= 1 - 1e-6


@pytest.mark.parametrize("spoil", [_leak, _owe, _lose_count, _lose_a_little])
def test_a_flow_that_leaks_proves_nothing(spoil: Callable[[Floats, Floats], None]) -> None:
    """A flow that does not conserve is refused, not believed."""
    graph = _graph(2, 2)
    network = Network.of(graph)
    edge, last = conserved(network, np.ones(len(network.lag)), np.ones(len(network)))
    spoil(edge, last)
    with pytest.raises(PlanningError, match="proves nothing"):
        certified_bound(network, _hulls(graph), 9.0, edge, last)
    with pytest.raises(PlanningError, match="proves nothing"):
        certified_group_bound(network, _groups(graph), 9.0, edge, last)


def test_what_rounding_loses_is_paid_for() -> None:
    """A leak too small to refuse lowers the bound by all that it could be worth."""
    graph = _graph(2, 2)
    network, hulls = Network.of(graph), _hulls(graph)
    edge, last = conserved(network, np.ones(len(network.lag)), np.ones(len(network)))
    proved = certified_bound(network, hulls, 9.0, edge, last)
    last[-1] *= 1 - 1e-10  # the last node of all follows others and must pass on what it gets
    assert certified_bound(network, hulls, 9.0, edge, last) <= proved
