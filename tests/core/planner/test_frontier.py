"""The frontier's promises: both curves hold every plan there is, and plans need no solve."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perseusd.core.graph import Graph
from perseusd.core.model import Computation, Curve, Edge, Kind, Pipeline, Plan, Problem
from perseusd.core.planner import evaluate
from perseusd.core.planner.envelope import Envelope, Support
from perseusd.core.planner.frontier import Frontier, frontier
from perseusd.core.planner.instance import Instance
from perseusd.core.planner.splice import longest_prefix
from perseusd.errors import PlanningError

GptProblem = Callable[..., Problem]

ROUNDING = 1e-6  # of the energy; what the interior point method and sums may be off by
ACCURACY = 0.002


@st.composite
def problems(draw: st.DrawFn, most: int = 12) -> Problem:
    """Two ranks with random orders, dependencies, lags and curves as odd as measured ones."""
    ranks = draw(st.lists(st.integers(0, 1), min_size=1, max_size=most))
    ranks[0] = 0
    nodes = [
        Computation(rank, 0, draw(st.sampled_from(["forward", "backward"])), m)
        for m, rank in enumerate(ranks)
    ]
    pairs = [(a, b) for i, a in enumerate(nodes) for b in nodes[i + 1 :] if a.rank != b.rank]
    chosen = draw(st.lists(st.sampled_from(pairs), max_size=8, unique=True)) if pairs else []
    lag = draw(st.sampled_from([0.0, 0.1]))
    return Problem(
        Pipeline(
            tuple(tuple(n for n in nodes if n.rank == r) for r in range(1 + max(ranks))),
            tuple(Edge(a, b, lag) for a, b in chosen),
        ),
        {kind: draw(curves()) for kind in sorted({n.kind for n in nodes})},
        [draw(st.sampled_from([0.0, 20.0, 60.0])) for _ in range(1 + max(ranks))],
    )


@st.composite
def curves(draw: st.DrawFn) -> Curve:
    """Two to four clocks; times and energies need not be monotone."""
    clocks = sorted(draw(st.sets(st.sampled_from([900, 1000, 1150, 1300]), min_size=2)))
    share = st.floats(0.5, 2.0)
    return Curve(
        tuple(clocks),
        tuple(draw(share) * 1300 / clock for clock in clocks),
        tuple(draw(share) * 100 * clock / 1300 for clock in clocks),
    )


def times(found: Frontier, count: int = 9) -> list[float]:
    """From the shortest time to well beyond the longest useful one."""
    return np.linspace(found.shortest_time_s, 1.2 * found.longest_useful_time_s, count).tolist()


@settings(max_examples=60, deadline=None)
@given(problems())
def test_the_curves_are_as_close_as_asked_convex_and_in_order(problem: Problem) -> None:
    """At every time the certified bound is below what mixed clocks reach, by at most the accuracy;
    the bound's cost is convex and never rises."""
    found = frontier(problem, accuracy=ACCURACY)
    waiting = sum(problem.blocking_power_w)
    at = times(found, 41)
    upper = np.array([found.upper_j(t) for t in at])
    lower = np.array([found.lower_bound_j(t) for t in at])
    assert found.gap <= ACCURACY
    assert (lower <= upper * (1 + ROUNDING)).all()
    assert (upper - lower <= ACCURACY * upper * (1 + ROUNDING)).all()
    cost = lower - waiting * np.array(at)
    scale = ROUNDING * upper.max()
    assert (np.diff(cost) <= scale).all()
    assert (np.diff(cost, 2) >= -scale).all()


@settings(max_examples=60, deadline=None)
@given(problems())
def test_points_are_real_plans_that_save_ever_more(problem: Problem) -> None:
    """By the independent evaluator each point's plan ends when it says and uses what it says, not
    less than the bound; energies fall to the least-energy time, and costs fall beyond it."""
    found = frontier(problem, accuracy=ACCURACY)
    waiting = sum(problem.blocking_power_w)
    for point in found.points:
        told = evaluate(problem, point.plan)
        assert told.iteration_time_s == pytest.approx(point.iteration_time_s)
        wait = waiting * max(0.0, told.deadline_s - told.iteration_time_s)
        assert told.energy_j - wait == pytest.approx(point.energy_j)
        assert point.energy_lower_bound_j <= point.energy_j * (1 + ROUNDING)
        assert point.iteration_time_s >= found.shortest_time_s * (1 - ROUNDING)
    assert _falls([p.energy_j for p in found.printed])
    assert _falls([p.energy_j - waiting * p.iteration_time_s for p in found.points])
    assert _falls([-p.iteration_time_s for p in found.points])
    assert found.printed[0].iteration_time_s == pytest.approx(found.shortest_time_s)
    assert found.printed[-1].iteration_time_s == found.least_energy_time_s
    assert found.least_energy_time_s <= found.longest_useful_time_s * (1 + ROUNDING)


@settings(max_examples=60, deadline=None)
@given(problems())
def test_a_plan_for_any_deadline_is_on_time_and_above_its_bound(problem: Problem) -> None:
    """By the independent evaluator; beyond the longest useful time the cheapest plan waits."""
    found = frontier(problem, accuracy=ACCURACY)
    cheapest = found.points[-1]
    waiting = sum(problem.blocking_power_w)
    for deadline in times(found):
        result = found.plan(deadline)
        told = evaluate(problem, result.plan)
        assert told.iteration_time_s <= deadline * (1 + ROUNDING)
        assert told.iteration_time_s == pytest.approx(result.iteration_time_s)
        until = max(told.iteration_time_s, told.deadline_s)
        assert result.energy_j == pytest.approx(told.energy_j + waiting * (deadline - until))
        assert result.energy_lower_bound_j <= result.energy_j * (1 + ROUNDING)
        assert result.energy_lower_bound_j >= found.lower_bound_j(deadline) * (1 - ROUNDING)
        if deadline > found.longest_useful_time_s:
            assert result.plan == cheapest.plan


@settings(max_examples=40, deadline=None)
@given(problems(most=5))
def test_no_plan_there_is_beats_the_bound(problem: Problem) -> None:
    """Every assignment of clocks tried: at its own time none uses less than the lower bound, and
    none ends before the shortest time or saves by ending after the longest useful one."""
    found = frontier(problem, accuracy=ACCURACY)
    waiting = sum(problem.blocking_power_w)
    least = found.points[-1].energy_j - waiting * found.points[-1].iteration_time_s
    everything = _everything(problem)
    for time, cost in everything:
        energy = cost + waiting * time
        assert time >= found.shortest_time_s * (1 - ROUNDING)
        assert cost >= least - ROUNDING * energy
        assert energy >= found.lower_bound_j(time) - ROUNDING * energy
    for deadline in times(found):
        best = min(cost for time, cost in everything if time <= deadline * (1 + 1e-12))
        told = found.plan(deadline).energy_lower_bound_j
        assert told <= (best + waiting * deadline) * (1 + ROUNDING)


def _everything(problem: Problem) -> list[tuple[float, float]]:
    """(time, cost) of every plan."""
    graph = Graph.from_pipeline(problem.pipeline)
    measured = [problem.curves[c.kind] for c in graph.nodes]
    power = [problem.blocking_power_w[c.rank] for c in graph.nodes]
    found = []
    for at in itertools.product(*(range(len(c.clock_mhz)) for c in measured)):
        time = np.array([c.time_s[k] for c, k in zip(measured, at, strict=True)])
        energy = sum(c.energy_j[k] for c, k in zip(measured, at, strict=True))
        found.append((float(graph.makespan(time)), energy - float(time @ power)))
    return found


def _falls(values: list[float]) -> bool:
    return all(a > b for a, b in itertools.pairwise(values))


@pytest.mark.parametrize(("gpu", "worst"), [("a100_sxm", 0.01), ("a40", 0.02)])
def test_on_gpt3_175b_plans_are_near_the_bound(gpt3: GptProblem, gpu: str, worst: float) -> None:
    """Real measurements, 12 microbatches: a dozen points hold the curve within 0.2 %, and a plan
    between them costs little more than the bound."""
    found = frontier(gpt3(gpu, 12), accuracy=ACCURACY)
    assert found.gap <= ACCURACY
    assert len(found.points) <= 20
    for deadline in np.linspace(found.shortest_time_s, found.longest_useful_time_s, 12).tolist():
        result = found.plan(deadline)
        assert result.iteration_time_s <= deadline * (1 + ROUNDING)
        assert result.energy_j <= (1 + worst) * result.energy_lower_bound_j


@settings(max_examples=20, deadline=None)
@given(problems(), st.integers(0, 20))
def test_more_time_never_costs(problem: Problem, chains: int) -> None:
    """However soon the time is up, a plan that was given some costs no more, and is on time."""
    found = frontier(problem)
    for deadline in times(found, 4):
        left = iter(range(chains))
        result = found.plan(deadline, lambda left=left: next(left, None) is not None)
        assert result.energy_j <= found.plan(deadline).energy_j
        assert result.energy_lower_bound_j <= result.energy_j * (1 + ROUNDING)
        assert evaluate(problem, result.plan).iteration_time_s <= deadline * (1 + ROUNDING)


@settings(max_examples=60, deadline=None)
@given(problems(), st.floats(0.0, 1.1))
def test_the_prefix_of_a_slower_plan_is_in_time(problem: Problem, share: float) -> None:
    """So many nodes with their slow durations keep the deadline, and one more would not."""
    inst = Instance.of(problem)
    fast, slow = inst.time.min(axis=1), inst.time.max(axis=1)
    first, last = float(inst.graph.makespan(fast)), float(inst.graph.makespan(slow))
    deadline = first + share * (last - first)
    count = longest_prefix(inst.network, slow, fast, deadline)
    node = np.arange(len(fast))
    assert inst.graph.makespan(np.where(node < count, slow, fast)) <= deadline * (1 + ROUNDING)
    if count < len(fast):
        assert inst.graph.makespan(np.where(node <= count, slow, fast)) > deadline


def test_asking_changes_nothing(gpt3: GptProblem) -> None:
    """The same question has the same answer, whatever was asked in between."""
    found = frontier(gpt3("a100_sxm", 4))
    before = found.plan(1.05 * found.shortest_time_s)
    for ratio in (1.0, 1.2, 1.01, 9.0):
        found.plan(ratio * found.shortest_time_s)
    assert found.plan(1.05 * found.shortest_time_s) == before


def test_limits_and_deadline_of_the_problem_do_not_matter(gpt3: GptProblem) -> None:
    """The frontier is that of free clocks without noise."""
    problem = gpt3("a100_sxm", 3)
    limited = replace(problem, max_writes=2, noise=0.02, deadline_ratio=1.3, time_budget_s=9.0)
    assert frontier(limited).points == frontier(problem).points


def test_a_deadline_below_the_shortest_names_the_shortest(gpt3: GptProblem) -> None:
    """The error carries the number that would do; nonsense is refused too."""
    found = frontier(gpt3("a100_sxm", 3))
    with pytest.raises(PlanningError, match=f"shortest.*{found.shortest_time_s:.6g} s"):
        found.plan(0.99 * found.shortest_time_s)
    with pytest.raises(PlanningError, match="shortest"):
        found.upper_j(float("nan"))


def test_one_computation_with_one_useful_clock_is_a_frontier() -> None:
    """Where the fastest clock is the cheapest too there is one point, for any deadline."""
    kind = Kind(0, 0, "iteration")
    one = Pipeline(((Computation(0, 0, "iteration", 0),),), ())
    found = frontier(Problem(one, {kind: Curve((1000, 1400), (2.0, 1.0), (90.0, 80.0))}, [10.0]))
    assert [(p.iteration_time_s, p.energy_j) for p in found.points] == [(1.0, 80.0)]
    assert found.plan(3.0).energy_j == pytest.approx(100.0)
    assert found.plan(3.0).plan == Plan(((None,),))
    assert found.least_energy_time_s == found.longest_useful_time_s == 1.0


def test_the_envelope_of_a_parabola() -> None:
    """Tangents below and chords above (D − 2)² on [0, 2]; farthest apart where tangents meet."""
    nothing = np.zeros(0)
    supports = [
        Support(d, (d - 2) ** 2, nothing, (d - 2) ** 2 + 2 * (2 - d) * d, 2 * (2 - d), nothing, 0.0)
        for d in (0.0, 1.0, 2.0)
    ]
    found = Envelope.of(supports)
    for d in np.linspace(0, 2, 21):
        assert found.lower(d) <= (d - 2) ** 2 + 1e-12
        assert found.upper(d) >= (d - 2) ** 2 - 1e-12
    assert found.lower(0.5) == pytest.approx(2.0)
    assert found.upper(0.5) == pytest.approx(2.5)
    gap, at = found.widest(1.0)
    assert (gap, at) == (pytest.approx(0.25), pytest.approx(1.5))
