"""The local search: what it keeps up to date equals timing from scratch, and it finds plans."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perseusd.core.model import Computation, Curve, Edge, Pipeline, Problem
from perseusd.core.planner.annealing import Annealing
from perseusd.core.planner.instance import Instance
from perseusd.core.planner.runs import writes
from perseusd.core.planner.search import Search
from perseusd.core.planner.sweeping import Sweeping
from perseusd.core.planner.timetable import Timetable
from perseusd.core.planner.timetable_kernels import statistic
from perseusd.core.schedules import gpipe, one_f_one_b, pipeline

GptProblem = Callable[..., Problem]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Small schedules, or any acyclic dependencies with lags, some computations alone."""
    if draw(st.booleans()):
        made = draw(st.sampled_from([one_f_one_b, gpipe]))(3, draw(st.integers(1, 4)))
        built = pipeline(made, draw(st.sampled_from([0.0, 0.1])))
    else:
        ranks = [0, *draw(st.lists(st.integers(0, 2), max_size=12))]
        nodes = [Computation(rank, 0, "forward", m) for m, rank in enumerate(ranks)]
        pairs = [(a, b) for i, a in enumerate(nodes) for b in nodes[i + 1 :] if a.rank != b.rank]
        chosen = draw(st.lists(st.sampled_from(pairs), max_size=8, unique=True)) if pairs else []
        built = Pipeline(
            tuple(o for r in range(3) if (o := tuple(n for n in nodes if n.rank == r))),
            tuple(Edge(a, b, draw(st.sampled_from([0.0, 0.2]))) for a, b in chosen),
        )
        if set(ranks) != set(range(len(built.orders))):
            built = pipeline(one_f_one_b(2, 2))
    clocks = (1000, 1100, 1200, 1300, 1400)
    table = {
        kind: Curve(
            clocks,
            tuple((1 + 0.1 * kind.rank) * np.array([1.32, 1.2, 1.12, 1.05, 1.0])),
            (80.0, 83.0, 88.0, 94.0, 100.0),
        )
        for kind in {c.kind for order in built.orders for c in order}
    }
    return Problem(
        built,
        table,
        [20.0] * built.ranks,
        deadline_ratio=draw(st.sampled_from([1.0, 1.03, 1.1])),
        noise=draw(st.sampled_from([0.0, 0.02])),
        confidence=draw(st.sampled_from([None, 0.9])),
        max_writes=draw(st.sampled_from([None, 0, 1, 2, 4])),
        full_clock_at_end=draw(st.booleans()),
        seed=draw(st.integers(0, 3)),
    )


@settings(max_examples=60, deadline=None)
@given(problems(), st.data())
def test_a_changed_timetable_is_the_one_from_scratch(problem: Problem, data: st.DataObject) -> None:
    """Tried and kept changes of any computations give the iteration time, ends and rests that
    timing everything anew gives; what is tried only changes nothing."""
    inst = Instance.of(problem)
    table = Timetable.of(inst.network, inst.factor, problem.confidence)
    option = inst.full.copy()
    assert table.set(inst.durations(option)) == pytest.approx(inst.iteration_time(option))
    for _ in range(6):
        nodes = np.array(sorted(data.draw(st.sets(st.integers(0, len(option) - 1), min_size=1))))
        other = option.copy()
        other[nodes] = data.draw(st.integers(0, int(inst.full[nodes].min())))
        durations = inst.durations(other)[nodes]
        if data.draw(st.booleans()):
            assert table.tried(nodes, durations) == pytest.approx(inst.iteration_time(other))
            continue
        option = other
        assert table.change(nodes, durations) == pytest.approx(inst.iteration_time(option))
        ends, rests = table.times[1].copy(), table.times[2].copy()
        table.set(inst.durations(option))
        np.testing.assert_allclose(ends, table.times[1])
        np.testing.assert_allclose(rests, table.times[2])


@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.0]), min_size=1, max_size=40),
    st.sampled_from([0.5, 0.9, 0.95, 0.999]),
)
def test_the_kernels_quantile_is_numpys(values: list[float], share: float) -> None:
    """Interpolated alike, equal values included; below 0 it is the mean."""
    times = np.array(values)
    assert statistic(times, share) == pytest.approx(np.quantile(times, share))
    assert statistic(times, -1.0) == pytest.approx(times.mean())


@settings(max_examples=60, deadline=None)
@given(problems())
def test_a_walk_knows_where_it_is(problem: Problem) -> None:
    """However many changes a walk has made, its best is within the writes, on time and of the
    value that it says, and its lateness is that of the plan it stands at."""
    inst = Instance.of(problem)
    walk: Annealing | Sweeping
    latest = inst.deadline_s * (1 + 1e-12)
    price = 0.0 if problem.max_writes is None else 0.5
    if problem.max_writes is None:
        walk = Sweeping(inst, inst.full, latest)
    else:
        walk = Annealing(inst, inst.full, latest, price)
    walk.begin(inst.full)
    for heat in (20.0, 2.0, 0.1):
        walk.go(20 if problem.max_writes is None else 300, 500.0, 100.0, heat)
        best = walk.best
        assert inst.iteration_time(best) <= inst.deadline_s * (1 + 1e-9)
        value = inst.total_cost(best) + price * inst.total_writes(best)
        assert walk.best_value == pytest.approx(value)
        for nodes in inst.graph.order:
            full = int(inst.full[nodes[0]])
            made = writes(best[nodes].tolist(), full, full_clock_at_end=problem.full_clock_at_end)
            assert problem.max_writes is None or made <= problem.max_writes
    here = walk.best
    walk.begin(here)
    assert not walk.late
    walk.begin(np.zeros_like(inst.full))
    slowest = inst.iteration_time(np.zeros_like(inst.full))
    assert walk.late == (slowest > latest)


def _search(problem: Problem, parts: int | None = None) -> tuple[Instance, float]:
    inst = Instance.of(problem)
    left = iter(range(10**9 if parts is None else parts))
    slow = np.maximum(inst.full - 6, 0)
    search = Search(inst, [slow, inst.full], inst.full, 5000.0, 0.0, lambda: next(left, -1) >= 0)
    option = search.improve()
    assert inst.iteration_time(option) <= inst.deadline_s * (1 + 1e-9)
    return inst, inst.total_cost(option)


@pytest.mark.parametrize("setting", [{"max_writes": 4}, {"max_writes": 4, "noise": 0.01}, {}])
def test_more_time_is_never_worse(gpt3: GptProblem, setting: dict[str, object]) -> None:
    """The search is stopped by time, and steered by nothing but its counted steps."""
    costs = [_search(gpt3("a100_sxm", 3, **setting), parts)[1] for parts in (0, 1, 5, 70, 200)]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < costs[0]


def test_late_starts_are_brought_on_time(gpt3: GptProblem) -> None:
    """From starts that are all late, with noise, plans that save are found, the same each time."""
    problem = gpt3("a40", 4, max_writes=5, noise=0.01)
    inst, cost = _search(problem, 150)
    full = inst.total_cost(inst.full)
    assert 1 - inst.energy(cost) / inst.energy(full) > 0.08
    assert _search(problem, 150)[1] == cost
