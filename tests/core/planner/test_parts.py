"""The planner's parts, each against a plainer way to the same answer."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perseusd.core.graph import Graph
from perseusd.core.model import Plan
from perseusd.core.planner import noise
from perseusd.core.planner.bound import certified_bound, conserved
from perseusd.core.planner.cuts import best_cuts
from perseusd.core.planner.hull import curvature, lower_hull
from perseusd.core.planner.relax import Group, relax
from perseusd.core.planner.runs import plan_writes, spans, writes
from perseusd.core.schedules import one_f_one_b, pipeline
from perseusd.errors import PlanningError


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(2, 3),
    st.integers(0, 4),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_cuts_are_the_best_there_are(
    positions: int, options: int, most: int, at_end: bool, seed: int
) -> None:
    """For every number of writes: the least priced cost over all assignments, tried one by one."""
    priced = np.random.default_rng(seed).integers(0, 20, (positions, options)).astype(float)
    found = best_cuts(priced, most, full_clock_at_end=at_end)
    least = dict.fromkeys(range(most + 1), np.inf)
    for tried in itertools.product(range(options), repeat=positions):
        made = writes(tried, options - 1, full_clock_at_end=at_end)
        value = priced[np.arange(positions), tried].sum()
        for allowed in range(made, most + 1):
            least[allowed] = min(least[allowed], value)
    for cut in found:
        option = cut.option.tolist()
        assert cut.value == least[cut.writes] == priced[np.arange(positions), option].sum()
        assert writes(option, options - 1, full_clock_at_end=at_end) <= cut.writes
    assert found[-1].value == least[most]


def test_writes_count_a_recurring_iteration() -> None:
    """Returning to the first clock counts, and so does full clock at the end where it is kept."""
    assert writes([1, 1, 2], 9, full_clock_at_end=False) == 2
    assert writes([1, 2, 1], 9, full_clock_at_end=False) == 2
    assert writes([1, 1], 9, full_clock_at_end=False) == 0
    assert writes([1, 1], 9, full_clock_at_end=True) == 2
    assert writes([9, 1, 9], 9, full_clock_at_end=True) == 2
    assert writes([9, 9], 9, full_clock_at_end=True) == 0
    assert plan_writes(Plan(((None, 900), (None,))), full_clock_at_end=True) == (2, 0)
    assert spans([3, 3, 1, 3]) == [(0, 2), (2, 3), (3, 4)]


@given(
    st.lists(st.tuples(st.floats(0.1, 5), st.floats(-5, 5)), min_size=1, max_size=12),
    st.floats(0, 10),
)
def test_the_hull_prices_like_all_points(points: list[tuple[float, float]], price: float) -> None:
    """At any price of time the cheapest point of the hull is as cheap as the cheapest of all."""
    time, cost = np.array(points).T
    hull = lower_hull(time, cost)
    assert (cost[hull] + price * time[hull]).min() == pytest.approx((cost + price * time).min())
    assert (np.diff(time[hull]) > 0).all()
    assert (np.diff(cost[hull]) < 0).all()


def test_curvature_is_that_of_a_parabola() -> None:
    """A curve whose slope changes by 2 J/s per second has it; a single point has none."""
    time = np.linspace(-1.0, 0.0, 50)
    assert curvature(time, time**2) == pytest.approx(2.0, rel=0.05)
    assert curvature(time[:1], time[:1]) == 0.0


def _free_groups(graph: Graph) -> list[Group]:
    time, cost = np.array([[1.0, 1.5, 2.0]]), np.array([10.0, 7.0, 6.0])
    zero = np.zeros(1, dtype=np.intp)
    return [Group(np.array([node]), zero, time, cost) for node in range(len(graph))]


def test_the_certificate_equals_the_relaxations_cost() -> None:
    """Weak duality is tight at the optimum: what the flow proves is what the mix costs."""
    graph = Graph.from_pipeline(pipeline(one_f_one_b(3, 4), 0.1))
    groups = _free_groups(graph)
    relaxed = relax(graph, groups, 17.0)
    flow = conserved(graph, relaxed.edge_flow[0], relaxed.last_flow[0])
    proved = certified_bound(graph, groups, 17.0, *flow)
    assert proved == pytest.approx(relaxed.cost, rel=1e-4)
    assert proved <= relaxed.cost * (1 + 1e-6)


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=25)
def test_any_conserving_flow_proves_a_bound(seed: int) -> None:
    """However bad the duals, what they prove stays below the true least cost."""
    graph = Graph.from_pipeline(pipeline(one_f_one_b(2, 3)))
    groups = _free_groups(graph)
    rng = np.random.default_rng(seed)
    flow = conserved(graph, rng.exponential(3.0, len(graph.tail)), rng.exponential(3.0, len(graph)))
    assert certified_bound(graph, groups, 9.0, *flow) <= relax(graph, groups, 9.0).cost + 1e-3


def test_a_flow_that_leaks_proves_nothing() -> None:
    """A flow that does not conserve is refused, not believed."""
    graph = Graph.from_pipeline(pipeline(one_f_one_b(2, 2)))
    edge = np.zeros(len(graph.tail))
    edge[0] = 1.0
    with pytest.raises(PlanningError, match="proves nothing"):
        certified_bound(graph, _free_groups(graph), 9.0, edge, np.zeros(len(graph)))


def test_no_mix_for_an_impossible_deadline() -> None:
    """A deadline below the fastest makespan is refused, with the deadline named."""
    graph = Graph.from_pipeline(pipeline(one_f_one_b(2, 2)))
    with pytest.raises(PlanningError, match=r"deadline of 1 s"):
        relax(graph, _free_groups(graph), 1.0)


def test_the_relaxation_of_samples_is_no_cheaper_than_without_noise() -> None:
    """The mean of longest paths is at least the longest path of means (Jensen)."""
    built = pipeline(one_f_one_b(3, 4))
    graph = Graph.from_pipeline(built)
    drawn = noise.factors(built, 0.05, 1)
    factor = np.empty((len(graph), drawn[0].shape[1]))
    for nodes, of_rank in zip(graph.order, drawn, strict=True):
        factor[nodes] = of_rank
    few = noise.fewer(factor, 4)
    few = few / few.mean(axis=1, keepdims=True)
    groups = _free_groups(graph)
    assert relax(graph, groups, 17.0, few).cost > relax(graph, groups, 17.0).cost


def test_noise_has_mean_one_and_the_asked_spread() -> None:
    """Every computation's factors average to exactly 1, with about the asked deviation."""
    drawn = noise.factors(pipeline(one_f_one_b(4, 50)), 0.03, 7)
    assert [d.shape for d in drawn] == [(100, noise.SAMPLES)] * 4
    everything = np.concatenate(drawn)
    assert everything.mean(axis=1) == pytest.approx(np.ones(400))
    assert everything.std() == pytest.approx(0.03, rel=0.05)
    assert [d.shape[1] for d in noise.factors(pipeline(one_f_one_b(4, 2)), 0.0, 7)] == [1] * 4
