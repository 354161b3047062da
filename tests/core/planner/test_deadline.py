"""The planner's promises on random problems: deadline, writes, bounds, and near the optimum."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perseusd.core.model import Computation, Curve, Edge, Kind, Pipeline, Plan, Problem
from perseusd.core.planner import evaluate, exhaustive, lower_bound, solve
from perseusd.core.planner.runs import plan_writes
from perseusd.core.schedules import gpipe, one_f_one_b, pipeline
from perseusd.errors import PlanningError

ROUNDING = 1 + 1e-9


@st.composite
def curves(draw: st.DrawFn) -> Curve:
    """Two to five clocks; times and energies need not be monotone, as measured ones are not."""
    clocks = sorted(draw(st.sets(st.sampled_from([900, 1000, 1100, 1200, 1300]), min_size=2)))
    share = st.floats(0.5, 2.0)
    return Curve(
        tuple(clocks),
        tuple(draw(share) * 1300 / clock for clock in clocks),
        tuple(draw(share) * 100 * clock / 1300 for clock in clocks),
    )


@st.composite
def graphs(draw: st.DrawFn, most: int = 14) -> Pipeline:
    """A small schedule, or random acyclic dependencies between random orders."""
    if draw(st.booleans()):
        schedule = draw(st.sampled_from([one_f_one_b, gpipe]))
        microbatches = draw(st.integers(1, max(1, most // 4)))
        return pipeline(schedule(2, microbatches), draw(st.sampled_from([0.0, 0.1])))
    ranks = draw(st.lists(st.integers(0, 1), min_size=1, max_size=most))
    ranks[0] = 0
    nodes = [
        Computation(rank, 0, draw(st.sampled_from(["forward", "backward"])), m)
        for m, rank in enumerate(ranks)
    ]
    pairs = [(a, b) for i, a in enumerate(nodes) for b in nodes[i + 1 :] if a.rank != b.rank]
    chosen = draw(st.lists(st.sampled_from(pairs), max_size=8, unique=True)) if pairs else []
    orders = tuple(tuple(n for n in nodes if n.rank == r) for r in range(1 + max(ranks)))
    return Pipeline(orders, tuple(Edge(a, b, 0.0) for a, b in chosen))


@st.composite
def problems(draw: st.DrawFn, most: int = 14, noisy: bool = True) -> Problem:
    built = draw(graphs(most))
    kinds = sorted({c.kind for order in built.orders for c in order})
    return Problem(
        built,
        {kind: draw(curves()) for kind in kinds},
        [draw(st.sampled_from([0.0, 20.0, 60.0])) for _ in built.orders],
        deadline_ratio=draw(st.sampled_from([1.0, 1.02, 1.2, 2.0])),
        noise=draw(st.sampled_from([0.0, 0.0, 0.02])) if noisy else 0.0,
        max_writes=draw(st.sampled_from([None, 0, 1, 2, 3, 5])),
        full_clock_at_end=draw(st.booleans()),
    )


@settings(max_examples=60, deadline=None)
@given(problems())
def test_a_plan_keeps_its_promises(problem: Problem) -> None:
    """By the independent evaluator: on time, within its writes, no worse than full clock, and
    never below the bounds, of which the one with the plan's writes is the higher."""
    result = solve(problem)
    told = evaluate(problem, result.plan)
    full = evaluate(problem, Plan(tuple((None,) * len(o) for o in problem.pipeline.orders)))
    assert told.iteration_time_s <= full.iteration_time_s * problem.deadline_ratio * ROUNDING
    assert told.iteration_time_s == pytest.approx(result.iteration_time_s)
    assert told.energy_j == pytest.approx(result.energy_j)
    assert told.energy_j <= full.energy_j * ROUNDING
    scale = abs(full.energy_j) + 1
    assert result.energy_lower_bound_j <= result.energy_j + 1e-6 * scale
    assert result.energy_lower_bound_writes_j <= result.energy_j + 1e-6 * scale
    assert result.energy_lower_bound_j <= result.energy_lower_bound_writes_j + 1e-4 * scale
    assert result.saving == pytest.approx(1 - told.energy_j / full.energy_j, abs=1e-9)
    written = plan_writes(result.plan, full_clock_at_end=problem.full_clock_at_end)
    assert result.clock_writes == max(written)
    assert problem.max_writes is None or max(written) <= problem.max_writes


@settings(max_examples=40, deadline=None)
@given(problems(most=5, noisy=False))
def test_small_problems_are_within_one_per_cent_of_the_optimum(problem: Problem) -> None:
    """Every assignment of clocks tried; the best one's energy is matched within 1 %."""
    result = solve(problem)
    best = min(
        told.energy_j
        for plan in _all_plans(problem)
        if (told := evaluate(problem, plan)).iteration_time_s <= result.deadline_s * ROUNDING
    )
    assert result.energy_lower_bound_j <= best * ROUNDING
    assert best <= result.energy_j * ROUNDING
    assert result.energy_j <= 1.01 * best


@pytest.mark.parametrize("settings_", [{"max_writes": 2}, {"max_writes": None}, {"noise": 0.02}])
def test_the_search_matches_trying_everything(
    monkeypatch: pytest.MonkeyPatch, settings_: dict[str, object]
) -> None:
    """On a job small enough for both, with curves as GPUs have them, the search that larger jobs
    get comes within 1 % of the exact answer."""
    problem = _uneven(microbatches=2, ranks=2, deadline_ratio=1.05, **settings_)
    thin = {
        kind: Curve(curve.clock_mhz[::2], curve.time_s[::2], curve.energy_j[::2])
        for kind, curve in problem.curves.items()
    }
    problem = replace(problem, curves=thin)
    exact = solve(problem)
    monkeypatch.setattr(exhaustive, "_MOST", 0)
    searched = solve(problem)
    assert exact.saving > 0.01
    assert exact.energy_j <= searched.energy_j * ROUNDING <= 1.01 * exact.energy_j


def _all_plans(problem: Problem) -> list[Plan]:
    plans = []
    choices = [[_clocks(problem, c, order) for c in order] for order in problem.pipeline.orders]
    ranks = [list(itertools.product(*of_rank)) for of_rank in choices]
    for clocks in itertools.product(*ranks):
        plan = Plan(tuple(clocks))
        written = plan_writes(plan, full_clock_at_end=problem.full_clock_at_end)
        if problem.max_writes is None or max(written) <= problem.max_writes:
            plans.append(plan)
    return plans


def _clocks(problem: Problem, c: Computation, order: tuple[Computation, ...]) -> list[int | None]:
    """What the planner may choose from: shared clocks where runs are, all where clocks are free."""
    own = problem.curves[c.kind].clock_mhz
    if problem.max_writes is None:
        return [*own[:-1], None]
    shared = set.intersection(*(set(problem.curves[o.kind].clock_mhz) for o in order))
    tops = {problem.curves[o.kind].clock_mhz[-1] for o in order}
    return [*(k for k in own if k in shared and {k} != tops), None]


@settings(max_examples=15, deadline=None)
@given(problems(noisy=False), st.floats(1.0, 1.5), st.floats(1.0, 1.5))
def test_a_later_deadline_never_raises_the_bound_of_the_computations(
    problem: Problem, a: float, b: float
) -> None:
    """The bound less the waiting power's share, which grows with the deadline by definition,
    falls as the deadline grows."""
    early, late = sorted((a, b))
    cost = []
    for ratio in (early, late):
        shifted = replace(problem, deadline_ratio=ratio)
        full = evaluate(shifted, Plan(tuple((None,) * len(o) for o in problem.pipeline.orders)))
        cost.append(lower_bound(shifted) - sum(problem.blocking_power_w) * full.deadline_s)
    assert cost[1] <= cost[0] + 1e-3 * (1 + abs(cost[0]))


def test_a_plan_is_the_same_every_time() -> None:
    """Without a clock nothing depends on the machine: two solves give one plan."""
    problem = _uneven(noise=0.01, max_writes=3)
    assert solve(problem) == solve(problem)


def test_the_time_budget_is_kept_by_the_callers_clock() -> None:
    """With no time at all there is still a plan that is on time; the solve time is the clock's."""
    ticks = itertools.count()
    problem = _uneven(noise=0.01, max_writes=3, time_budget_s=0.0)
    result = solve(problem, clock=lambda: float(next(ticks)))
    assert result.solve_time_s > 0
    assert result.iteration_time_s <= result.deadline_s * ROUNDING


def test_a_data_parallel_job_slows_every_rank_but_the_longest() -> None:
    """One computation per rank and iteration: each rank uses up exactly the slack that it has."""
    orders = [[Computation(rank, 0, "iteration", 0)] for rank in range(3)]
    table = {
        Kind(rank, 0, "iteration"): Curve(
            (1000, 1200, 1400),
            tuple(base * s for s in (1.3, 1.1, 1.0)),
            (80.0, 90.0, 100.0),
        )
        for rank, base in enumerate((1.0, 0.9, 0.75))
    }
    result = solve(Problem(pipeline(orders), table, [10.0] * 3, max_writes=2))
    assert result.plan.clocks == ((None,), (1200,), (1000,))


def test_ranks_with_different_gpus_have_clocks_of_their_own() -> None:
    """Clock lists need not agree between ranks; every clock planned is on its own rank's list."""
    problem = _uneven(max_writes=4)
    other = {
        kind: replace(curve, clock_mhz=tuple(c + 7 for c in curve.clock_mhz))
        for kind, curve in problem.curves.items()
        if kind.rank == 0
    }
    problem = replace(problem, curves={**problem.curves, **other})
    result = solve(problem)
    assert result.saving > 0.02
    for order, clocks in zip(problem.pipeline.orders, result.plan.clocks, strict=True):
        for c, clock in zip(order, clocks, strict=True):
            assert clock is None or clock in problem.curves[c.kind].clock_mhz


def test_fewer_samples_than_all_still_give_full_clock_where_nothing_pays() -> None:
    """Where a lower clock costs time and energy, the plan is full clock and says so."""
    orders = one_f_one_b(2, 3)
    table = {
        Kind(rank, 0, i): Curve((1000, 1400), (2.0, 1.0), (300.0, 100.0))
        for rank in range(2)
        for i in ("forward", "backward")
    }
    result = solve(Problem(pipeline(orders), table, [10.0] * 2, deadline_ratio=1.5, max_writes=4))
    assert result.saving == 0
    assert result.clock_writes == 0
    assert any("saves" in warning for warning in result.warnings)


def test_curves_without_a_common_clock_stay_at_full_clock_with_a_warning() -> None:
    """A run shares one clock: kinds of a rank measured at different clocks leave none but full."""
    problem = _uneven(max_writes=4)
    forward = problem.curves[Kind(0, 0, "forward")]
    moved = replace(forward, clock_mhz=tuple(c + 7 for c in forward.clock_mhz))
    problem = replace(problem, curves={**problem.curves, Kind(0, 0, "forward"): moved})
    result = solve(problem)
    assert set(result.plan.clocks[0]) == {None}
    assert any("rank 0 share no clock" in warning for warning in result.warnings)


def _uneven(microbatches: int = 4, ranks: int = 3, **settings: object) -> Problem:
    """Stages of unlike length, the second one longest, five clocks."""
    clocks = (1000, 1100, 1200, 1300, 1400)
    times = np.array([1.32, 1.2, 1.12, 1.05, 1.0])
    energy = np.array([80.0, 83.0, 88.0, 94.0, 100.0])
    table = {}
    for rank, long in enumerate((0.8, 1.0, 0.7)[:ranks]):
        for instruction, share in (("forward", 1.0), ("backward", 2.0)):
            table[Kind(rank, 0, instruction)] = Curve(
                clocks, tuple(times * long * share), tuple(energy * long * share)
            )
    return Problem(pipeline(one_f_one_b(ranks, microbatches)), table, [30.0] * ranks, **settings)  # type: ignore[arg-type]


def _with_curve(**changes: object) -> Problem:
    problem = _uneven()
    kind = Kind(1, 0, "forward")
    return replace(
        problem, curves={**problem.curves, kind: replace(problem.curves[kind], **changes)}
    )


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (replace(_uneven(), curves={}), "no curve for backward on rank 0, chunk 0: measure"),
        (_with_curve(clock_mhz=(1400,), time_s=(1.0,), energy_j=(1.0,)), "has 1 clock"),
        (_with_curve(time_s=(1.0,)), "5 clocks, 1 times and 5 energies"),
        (_with_curve(time_s=(1.0, 1.0, float("nan"), 1.0, 1.0)), "time_s at 1200 MHz is nan"),
        (_with_curve(energy_j=(1.0, 1.0, 1.0, -2.0, 1.0)), "energy_j at 1300 MHz is -2.0"),
        (_with_curve(clock_mhz=(1, 2, 2, 3, 4)), "clocks must ascend"),
        (replace(_uneven(), deadline_ratio=0.98), r"deadline_ratio is 0.98: the shortest is 1\.0"),
        (replace(_uneven(), deadline_ratio=float("nan")), "deadline_ratio is nan"),
        (replace(_uneven(), max_writes=-1), "max_writes is -1: must be ≥ 0"),
        (replace(_uneven(), noise=-0.1), "noise is -0.1"),
        (replace(_uneven(), blocking_power_w=[1.0]), "1 values for 3 ranks"),
        (replace(_uneven(), blocking_power_w=[1.0, -1.0, 1.0]), "of rank 1 is -1.0 W"),
        (replace(_uneven(), pipeline=Pipeline((), ()), blocking_power_w=[]), "no computations"),
    ],
)
def test_a_problem_that_is_none_is_refused(problem: Problem, message: str) -> None:
    """The error names the thing, its value and the fix."""
    with pytest.raises(PlanningError, match=message):
        solve(problem)


def test_a_plan_for_another_pipeline_is_refused() -> None:
    """Evaluating a plan of the wrong shape, or with a clock never measured, names the mismatch."""
    problem = _uneven()
    with pytest.raises(PlanningError, match="made for another pipeline"):
        evaluate(problem, Plan(((None,), (None,), (None,))))
    clocks = [list((None,) * len(order)) for order in problem.pipeline.orders]
    clocks[0][0] = 777
    with pytest.raises(PlanningError, match="at 777 MHz, where its curve has no point"):
        evaluate(problem, Plan(tuple(tuple(c) for c in clocks)))
