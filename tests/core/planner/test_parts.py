"""The planner's parts, each against a plainer way to the same answer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perseusd.core.graph import Graph
from perseusd.core.model import Plan
from perseusd.core.planner import noise
from perseusd.core.planner.hull import curvature, lower_hull
from perseusd.core.planner.relax import Group, relax
from perseusd.core.planner.runs import plan_writes, spans, writes
from perseusd.core.schedules import one_f_one_b, pipeline
from perseusd.errors import PlanningError


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
    few = factor[:, :4]
    few = few / few.mean(axis=1, keepdims=True)
    groups = _free_groups(graph)
    assert relax(graph, groups, 17.0, few).cost > relax(graph, groups, 17.0).cost
