"""What a plan and its predicted timelines tell beforehand."""

from __future__ import annotations

import itertools
from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perseusd.core.events.paced import SHORTER, PacedPlan, Timeline, paced
from perseusd.core.graph import Graph
from perseusd.core.model import Curve, Kind, Plan
from perseusd.core.schedules import one_f_one_b, pipeline

MS = 1_000_000


def plan_of(clocks: list[int | None], edges_ms: list[float]) -> PacedPlan:
    """Of one rank. edges_ms: when each computation starts, and ends."""
    edges = [ms / 1000 for ms in edges_ms]
    return PacedPlan(Plan((tuple(clocks),)), (Timeline(tuple(edges[::2]), tuple(edges[1::2])),))


def gapless(clocks: list[int | None], *lengths_ms: float) -> PacedPlan:
    ends = list(itertools.accumulate(lengths_ms, initial=0.0))
    return plan_of(clocks, [edge for pair in itertools.pairwise(ends) for edge in pair])


@given(st.lists(st.sampled_from([None, 900, 1200]), max_size=12))
def test_the_next_change_of_clock(clocks: list[int | None]) -> None:
    [changes] = gapless(clocks, *(10.0 for _ in clocks)).changes
    for position, change in enumerate(changes):
        after = range(position + 1, len(clocks))
        differing = [p for p in after if clocks[p] != clocks[position]]
        assert change == min(differing, default=len(clocks))


@pytest.mark.parametrize(
    ("clocks", "busy_ms", "then_ms", "raise_ms"),
    [
        ([None, 900, None], [40, 40, 80], [40, 160, 80], [80, 40, 160, 80]),
        ([900, 900, 1200], [80, 40, 80], [80, 80, 80], [80, 40, 80, 80]),
        ([None, 1200, 900], [40, 40, 80], [120, 80, 160], [160, 120, 80, 160]),  # by a lowering
        ([900, None, None], [40, 120, 80], [160, 40, 40], [40, 160, 120, 40]),
        ([None, None, None], [160, 120, 80], [inf] * 3, [inf] * 4),
    ],
)
def test_how_long_until_a_raise_that_a_start_does_not_foretell(
    clocks: list[int | None], busy_ms: list[float], then_ms: list[float], raise_ms: list[float]
) -> None:
    """A start foretells the end of its run; whatever is raised after that, only later starts do.
    After the iteration comes another one like it."""
    [outlook] = gapless(clocks, 40, 40, 80).outlooks
    assert outlook.busy_ns == pytest.approx([SHORTER * MS * ms for ms in busy_ms])
    assert outlook.then_ns == pytest.approx([SHORTER * MS * ms for ms in then_ms])
    assert outlook.raise_ns == pytest.approx([SHORTER * MS * ms for ms in raise_ms])


def test_a_wait_may_turn_out_shorter() -> None:
    """So the end of a run with a wait in it is not foretold by its first start."""
    [outlook] = plan_of([900, 900, None], [0, 40, 60, 100, 100, 180]).outlooks
    assert outlook.busy_ns == pytest.approx([SHORTER * MS * ms for ms in (40, 40, 80)])
    assert outlook.then_ns == pytest.approx([SHORTER * MS * ms for ms in (40, 160, 80)])


def test_a_rank_without_computations_has_nothing_to_raise() -> None:
    [outlook] = plan_of([], []).outlooks
    assert outlook.raise_ns == (inf,)


def test_timelines_follow_the_curves() -> None:
    """Predicted starts and ends are those of the graph with each computation at its clock."""
    orders = one_f_one_b(2, 2)
    graph = Graph.from_pipeline(pipeline(orders, 0.001))
    curve = Curve((700, 1400), (0.2, 0.1), (1.0, 1.0))
    curves = dict.fromkeys({Kind(r, 0, i) for r in (0, 1) for i in ("forward", "backward")}, curve)
    plan = Plan(
        tuple(tuple(None if rank else 1050 for _ in order) for rank, order in enumerate(orders))
    )
    made = paced(plan, graph, curves)
    durations = made.durations(graph)
    np.testing.assert_allclose(durations, np.where(graph.rank == 0, 0.15, 0.1))
    for rank, nodes in enumerate(graph.order):
        np.testing.assert_allclose(made.timelines[rank].start_s, graph.earliest(durations)[nodes])
