"""Ranks' iterations are joined by number, and the pipeline is what they show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perseusd.core.events import iterations
from perseusd.core.events.iterations import (
    KEPT_OPEN,
    Assembly,
    JobIteration,
    alike,
    observed_pipeline,
)
from perseusd.core.events.tracking import RankIteration, Span, Step
from perseusd.core.graph import Graph
from perseusd.core.model import Computation
from perseusd.core.schedules import (
    Layout,
    early_recompute_one_f_one_b,
    gpipe,
    interleaved_one_f_one_b,
    one_f_one_b,
    pipeline,
    read_orders,
    zb_h1,
)
from perseusd.errors import PlanningError

MS = 1_000_000
LAG_S = 0.002


def ran(
    orders: Sequence[Sequence[Computation]],
    number: int = 0,
    origin_ns: int = 0,
    swap: bool = False,
    layout: Layout | None = None,
) -> JobIteration:
    """An iteration as it runs: 80 ms a whole backward, else 40 ms; 2 ms between ranks."""
    graph = Graph.from_pipeline(pipeline(orders, LAG_S, layout))
    lengths = np.array([0.08 if c.instruction == "backward" else 0.04 for c in graph.nodes])
    start = graph.earliest(lengths)
    ranks = []
    for nodes in graph.order:
        spans = [
            Span(
                Step(c.chunk, c.instruction, c.microbatch),
                origin_ns + int(start[k] * 1e9),
                origin_ns + int((start[k] + lengths[k]) * 1e9),
            )
            for k, c in ((k, graph.nodes[k]) for k in nodes)
        ]
        ranks.append(RankIteration(number, tuple(spans)))
    return JobIteration(number, tuple(reversed(ranks) if swap else ranks))


def whole(number: int, start_ns: int) -> RankIteration:
    return RankIteration(number, (Span(Step(0, "iteration", 0), start_ns, start_ns + MS),))


@given(st.permutations([(rank, number) for rank in range(3) for number in range(4)]))
def test_iterations_are_joined_by_number(arrivals: list[tuple[int, int]]) -> None:
    """In whatever order ranks finish: every iteration once, when its last rank has."""
    assembly, got = Assembly(3), []
    for i, (rank, number) in enumerate(arrivals):
        joined = assembly.add(rank, whole(number, number * 100 * MS + rank), counted=False)
        if joined is not None:
            assert all((r, joined.number) in arrivals[: i + 1] for r in range(3))
            assert [r.spans[0].start_ns % 100 for r in joined.ranks] == [0, 1, 2]
            got.append(joined.number)
    assert sorted(got) == [0, 1, 2, 3]


def test_iterations_that_a_rank_never_finishes_are_dropped() -> None:
    """A rank that went missing does not fill the memory of the others."""
    assembly = Assembly(2)
    for number in range(1000):
        assert assembly.add(0, whole(number, number), counted=False) is None
        assert assembly.add(0, whole(number, number), counted=True) is None
    assert len(assembly._open) <= KEPT_OPEN
    assert len(assembly._latest) == 1


@given(
    st.lists(st.integers(0, 60), min_size=2, max_size=5),
    st.lists(st.floats(-0.2, 0.6), min_size=5, max_size=5),
)
def test_ranks_that_count_for_themselves_are_joined_by_time(
    firsts: list[int], shifts: list[float]
) -> None:
    """Counts that differ, after a disorder say, must not join one rank's iteration with another's
    neighbour: every joined iteration is one in time."""
    length = 1000 * MS
    shifts = [0.0, *shifts[1:]]
    assembly, got = Assembly(len(firsts)), []
    for i in range(6):
        for rank, first in enumerate(firsts):
            start_ns = 10**12 + int((i + shifts[rank]) * length)
            joined = assembly.add(rank, whole(first + i, start_ns), counted=True)
            if joined is not None:
                got.append(joined)
    assert len(got) >= 3
    for joined in got:
        starts = [r.spans[0].start_ns for r in joined.ranks]
        true = [(s - 10**12) / length - shifts[rank] for rank, s in enumerate(starts)]
        assert max(true) - min(true) < 0.01
        assert joined.number == joined.ranks[0].number


RECORDED = Path(__file__).parents[1] / "schedules" / "recorded"
OBSERVED = [
    "InterleavedZeroBubble-printed-4-8-2",
    "ZBVZeroBubble-printed-2-4-2",
    "ZBVZeroBubble-printed-4-8-2",
    "DualPipeV-printed-2-4-2",
    "DualPipeV-printed-3-7-2",
]


@pytest.mark.parametrize(
    "orders",
    [
        one_f_one_b(4, 6),
        gpipe(3, 4),
        one_f_one_b(1, 3),
        early_recompute_one_f_one_b(3, 4),
        zb_h1(4, 6),
        interleaved_one_f_one_b(3, 6, 2),
    ],
)
def test_the_pipeline_is_what_was_seen(orders: Sequence[Sequence[Computation]]) -> None:
    """Orders as they ran, dependencies by rule, communication as measured where somebody waited."""
    seen = observed_pipeline([ran(orders, n, n * 10**10) for n in range(3)])
    assert seen.orders == tuple(tuple(o) for o in orders)
    assert {(e.before, e.after) for e in seen.edges} == {
        (e.before, e.after) for e in pipeline(orders, 0.0).edges
    }
    for edge in seen.edges:
        assert edge.lag_s == pytest.approx(LAG_S, abs=1e-6)


@pytest.mark.parametrize("name", OBSERVED)
def test_orders_that_no_rule_gives_are_taken_as_they_run(name: str) -> None:
    """V-shaped, split and partly split orders: where virtual stages are is found out."""
    orders, layout = read_orders((RECORDED / f"{name}.txt").read_text())
    seen = observed_pipeline([ran(orders, n, n * 10**10, layout=layout) for n in range(3)])
    assert seen.orders == orders
    expected = {(e.before, e.after) for e in pipeline(orders, layout=layout).edges}
    assert {(e.before, e.after) for e in seen.edges} == expected
    assert all(edge.lag_s == pytest.approx(LAG_S, abs=1e-6) for edge in seen.edges)


@pytest.mark.parametrize("declared", [None, "gpipe", "zbv"])
@pytest.mark.parametrize("layout", ["looped", "v"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_where_orders_tell_no_layout_times_do(
    ranks: int, layout: Layout, declared: str | None
) -> None:
    """All forwards, then all backwards, chunk by chunk, can run round as well as there and back:
    the one that the times contradict is not meant, whatever name was declared."""
    orders = [
        [
            Computation(r, chunk, i, m)
            for i, chunks in (("forward", (0, 1)), ("backward", (1, 0)))
            for chunk in chunks
            for m in range(4)
        ]
        for r in range(ranks)
    ]
    seen = observed_pipeline(
        [ran(orders, n, n * 10**10, layout=layout) for n in range(2)], declared
    )
    expected = {(e.before, e.after) for e in pipeline(orders, layout=layout).edges}
    assert {(e.before, e.after) for e in seen.edges} == expected


def test_stages_numbered_in_the_wrong_order_are_found_out() -> None:
    """Were they believed, the critical path would be taken for slack and slowed: refused."""
    orders = gpipe(2, 4)  # the same order of instructions on every rank, so only times tell
    wrong = [ran(orders, n, n * 10**10, swap=True) for n in range(2)]
    with pytest.raises(PlanningError, match="numbered in the pipeline's order"):
        observed_pipeline(wrong)


def test_ranks_joined_with_the_wrong_iteration_are_found_out() -> None:
    """One rank's iteration n with the other's n + 1 contradicts every dependency."""
    orders = one_f_one_b(2, 4)
    first, second = ran(orders, 0), ran(orders, 1, 10**10)
    for mixed in ((first.ranks[0], second.ranks[1]), (second.ranks[0], first.ranks[1])):
        with pytest.raises(PlanningError, match="numbered in the pipeline's order"):
            observed_pipeline([JobIteration(0, mixed)])


def test_iterations_of_another_order_are_set_aside() -> None:
    """The first iterations may differ (warm-up, say): those like the last one count."""
    other, same = ran(one_f_one_b(2, 3)), ran(one_f_one_b(2, 4))
    assert alike([other, same, other, same, same]) == [same, same, same]


def test_what_would_stall_the_daemon_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Iterations of too many computations or kinds are told so, not worked on."""
    monkeypatch.setattr(iterations, "MOST_COMPUTATIONS", 10)
    with pytest.raises(PlanningError, match="16 computations"):
        observed_pipeline([ran(one_f_one_b(2, 4))])
    spans = tuple(Span(Step(c, "iteration", 0), c, c + 1) for c in range(100))
    monkeypatch.setattr(iterations, "MOST_COMPUTATIONS", 1000)
    with pytest.raises(PlanningError, match="100 kinds"):
        observed_pipeline([JobIteration(0, (RankIteration(0, spans),))])
