"""The budget of clock writes: exact runs at given prices, a limit that holds, and starts."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from perseusd.core.model import Curve, Kind, Problem
from perseusd.core.planner import budget, budget_kernels, starts_kernels
from perseusd.core.planner.cuts import best_options
from perseusd.core.planner.groups import free
from perseusd.core.planner.instance import Instance
from perseusd.core.planner.relax import Relaxed, relax
from perseusd.core.planner.runs import writes
from perseusd.core.planner.starts import starts
from perseusd.core.schedules import one_f_one_b, pipeline
from perseusd.errors import PlanningError

GptProblem = Callable[..., Problem]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
ON_TIME = 1 + 1e-9


def _problem(
    seed: int, stages: int, microbatches: int, clocks: int, **of_problem: object
) -> Problem:
    """Curves as GPUs have them, roughly: slower and cheaper, not smoothly."""
    rng = np.random.default_rng(seed)
    curves = {}
    for stage, instruction in itertools.product(range(stages), ("forward", "backward")):
        mhz = np.linspace(1000, 1400, clocks).astype(int)
        time = rng.uniform(0.8, 1.6) * (1400 / mhz) * rng.uniform(0.95, 1.0, clocks)
        energy = 200 * (mhz / 1400) ** 2 * rng.uniform(0.9, 1.1, clocks) * time
        curves[Kind(stage, 0, instruction)] = Curve(
            tuple(mhz.tolist()), tuple(time.tolist()), tuple(energy.tolist())
        )
    built = pipeline(one_f_one_b(stages, microbatches))
    return Problem(built, curves, [40.0] * stages, **of_problem)  # type: ignore[arg-type]


def _relaxed(inst: Instance) -> Relaxed:
    return relax(inst.graph, free(inst.problem, inst.graph), inst.deadline_s)


def _rank_writes(inst: Instance, option: Ints) -> list[int]:
    at_end = inst.problem.full_clock_at_end
    return [
        writes(option[nodes].tolist(), int(inst.full[nodes[0]]), full_clock_at_end=at_end)
        for nodes in inst.graph.order
    ]


def _assignments(inst: Instance, max_writes: int) -> list[Ints]:
    """Every assignment of options within the writes."""
    every = itertools.product(*(range(int(full) + 1) for full in inst.full))
    tried = (np.array(option, dtype=np.int64) for option in every)
    return [option for option in tried if max(_rank_writes(inst, option)) <= max_writes]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 3),
    st.integers(2, 3),
    st.integers(0, 5),
    st.booleans(),
    st.sampled_from([0.0, 3.0]),
)
def test_runs_are_the_best_there_are(
    seed: int, microbatches: int, clocks: int, most: int, at_end: bool, write_price: float
) -> None:
    """The least priced cost over all assignments, tried one by one, and options that have it; the
    plain array code finds it too."""
    problem = _problem(seed, 1, microbatches, clocks, max_writes=most, full_clock_at_end=at_end)
    inst = Instance.of(problem)
    rng = np.random.default_rng(seed)
    price, target = rng.uniform(0, 200, len(inst.full)), rng.uniform(0, 2, len(inst.full))
    weight = rng.uniform(0, 100, len(inst.full))
    priced = inst.cost + price[:, None] * inst.time
    priced += weight[:, None] * (inst.time - target[:, None]) ** 2

    def value(option: Ints) -> float:
        chosen = priced[np.arange(len(option)), option].sum()
        return float(chosen + write_price * sum(_rank_writes(inst, option)))

    best = min(value(option) for option in _assignments(inst, most))
    option, found = best_options(
        inst, most, price, target=target, weight=weight, write_price_j=write_price
    )
    assert max(_rank_writes(inst, option)) <= most
    assert value(option) == pytest.approx(best)
    assert found == pytest.approx(best)
    if not write_price:
        (nodes,) = inst.graph.order
        assert budget._least(priced[nodes], most, at_end) == pytest.approx(best)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 4),
    st.booleans(),
    st.sampled_from([1.0, 1.02, 1.2, 2.0]),
)
def test_the_limit_is_below_every_plan(seed: int, most: int, at_end: bool, ratio: float) -> None:
    """No assignment within the writes and on time costs less, and the flow proves it."""
    problem = _problem(
        seed, 2, 2, 3, max_writes=most, full_clock_at_end=at_end, deadline_ratio=ratio
    )
    inst = Instance.of(problem)
    limit = budget.limit(inst, _relaxed(inst), most)
    best = min(
        inst.total_cost(option)
        for option in _assignments(inst, most)
        if inst.graph.makespan(inst.durations(option)) <= inst.deadline_s * ON_TIME
    )
    scale = abs(best) + 1
    assert limit.cost_bound <= best + 1e-9 * scale
    proven = budget.proven_cost(inst, most, limit.edge_flow, limit.last_flow)
    assert proven == pytest.approx(limit.cost_bound, abs=1e-9 * scale)


def test_the_limit_is_that_of_free_clocks_where_writes_abound(gpt3: GptProblem) -> None:
    """With a write for every computation a budget bounds no more than sharing clocks does."""
    inst = Instance.of(gpt3("a100_sxm", 4, max_writes=50))
    relaxed = _relaxed(inst)
    full = inst.energy(inst.total_cost(inst.full))
    limit = budget.limit(inst, relaxed, 50)
    assert inst.energy(limit.cost_bound) >= inst.energy(relaxed.cost) - 2e-3 * full
    assert inst.energy(limit.cost_bound) <= inst.energy(relaxed.cost) + 1e-2 * full


@pytest.mark.parametrize(
    ("gpu", "most", "known"),
    [("a100_sxm", 3, 0.1335), ("a100_sxm", 6, 0.1516), ("a40", 3, 0.1034), ("a40", 6, 0.1212)],
)
def test_limits_of_gpt3_175b(gpt3: GptProblem, gpu: str, most: int, known: float) -> None:
    """12 microbatches at the baseline's time: no more than this share can be saved."""
    inst = Instance.of(gpt3(gpu, 12, max_writes=most))
    limit = budget.limit(inst, _relaxed(inst), most)
    full = inst.energy(inst.total_cost(inst.full))
    assert 1 - inst.energy(limit.cost_bound) / full <= known


def test_more_steps_and_fewer_writes_bound_more(gpt3: GptProblem) -> None:
    """A bound never falls with more steps; one for fewer writes is higher."""
    inst = Instance.of(gpt3("a100_sxm", 6, max_writes=6))
    relaxed = _relaxed(inst)
    bounds = [budget.limit(inst, relaxed, 6, steps=k).cost_bound for k in (0, 5, 20, 80)]
    assert bounds == sorted(bounds)
    assert budget.limit(inst, relaxed, 2).cost_bound > bounds[-1]
    stopped = budget.limit(inst, relaxed, 6, more_time=lambda: False)
    assert stopped.cost_bound == bounds[0]


def test_a_deadline_that_binds_nothing_needs_no_step(gpt3: GptProblem) -> None:
    """Where the cheapest plan within the writes is on time, its cost is the limit."""
    inst = Instance.of(gpt3("a100_sxm", 4, max_writes=2, deadline_ratio=2.0))
    limit = budget.limit(inst, _relaxed(inst), 2)
    assert limit.cost_bound == pytest.approx(inst.total_cost(limit.option))
    assert limit.deadline_price == 0.0
    ((start, safe), *_) = starts(inst, limit, 2, 0.0, lambda: True)
    assert inst.total_cost(start) == pytest.approx(limit.cost_bound)
    assert (start == safe).all()


def test_a_flow_that_leaks_proves_nothing_of_a_budget() -> None:
    """A flow that does not conserve, or is no number, is refused."""
    inst = Instance.of(_problem(1, 2, 2, 3, max_writes=2))
    edge, last = np.zeros(len(inst.graph.tail)), np.zeros(len(inst.graph))
    for wrong in (1.0, -1.0, np.nan):
        edge[0] = wrong
        with pytest.raises(PlanningError, match="proves nothing"):
            budget.proven_cost(inst, 2, edge, last)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1.0, 100.0]))
def test_a_tilted_flow_conserves(seed: int, scale: float) -> None:
    """Whatever goes in, one unit of flow passes the end, nothing is lost on its way, and a strong
    tilt leaves only what is about the longest path."""
    inst = Instance.of(_problem(seed % 7, 3, 4, 2, max_writes=2))
    network, rng = inst.network, np.random.default_rng(seed)
    edge = rng.exponential(1.0, len(network.lag)) * rng.integers(0, 2, len(network.lag))
    last = rng.exponential(1.0, len(network)) * rng.integers(0, 2, len(network))
    durations = rng.uniform(0.5, 1.5, len(network))
    grown = budget_kernels.tilted(
        network.tail,
        network.lag,
        network.into_first,
        network.into_edge,
        network.from_first,
        network.from_edge,
        durations,
        scale,
        edge,
        last,
    )
    out = np.bincount(network.tail, edge, minlength=len(network)) + last
    inside = np.bincount(network.head, edge, minlength=len(network))
    preceded = np.diff(network.into_first) > 0
    assert min(edge.min(), last.min()) >= 0
    assert last.sum() == pytest.approx(1.0)
    assert out[preceded] == pytest.approx(inside[preceded])
    length = float(out @ durations + edge @ network.lag)
    longest = float(inst.graph.makespan(durations))
    assert length <= longest * ON_TIME
    assert grown <= scale * longest + 1e-9
    if scale == 100.0:
        assert length == pytest.approx(longest, rel=0.02)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 5), st.booleans(), st.sampled_from([1.0, 1.05]))
def test_starts_keep_the_budget_and_the_deadline(
    seed: int, most: int, at_end: bool, ratio: float
) -> None:
    """Within the writes, on time, no dearer than full clock, the best first; at once when there is
    no time."""
    problem = _problem(
        seed, 3, 4, 4, max_writes=most, full_clock_at_end=at_end, deadline_ratio=ratio
    )
    inst = Instance.of(problem)
    relaxed = _relaxed(inst)
    limit = budget.limit(inst, relaxed, most, steps=20)
    found = starts(inst, limit, most, 0.1, lambda: True)
    hurried = starts(inst, limit, most, 0.1, lambda: False)
    for option in itertools.chain(*found, *hurried):
        assert max(_rank_writes(inst, option)) <= most
        assert inst.iteration_time(option) <= inst.deadline_s * ON_TIME
        assert limit.cost_bound <= inst.total_cost(option) + 1e-6
    values = [inst.total_cost(start) + 0.1 * inst.total_writes(start) for start, _ in found]
    assert values == sorted(values)
    assert values[0] <= inst.total_cost(inst.full) + 1e-9


def test_starts_under_noise_are_safe(gpt3: GptProblem) -> None:
    """With noise, `safe` is on time on the samples, and saves most of what is possible without."""
    problem = gpt3("a100_sxm", 12, max_writes=6, deadline_ratio=1.02, noise=0.01)
    inst = Instance.of(problem)
    relaxed = _relaxed(inst)
    limit = budget.limit(inst, relaxed, 6)
    found = starts(inst, limit, 6, 0.0, lambda: True)
    full = inst.energy(inst.total_cost(inst.full))
    for _, safe in found:
        assert inst.iteration_time(safe) <= inst.deadline_s * ON_TIME
    saved = max(1 - inst.energy(inst.total_cost(safe)) / full for _, safe in found)
    assert saved > 0.15


@pytest.mark.parametrize(
    ("gpu", "microbatches", "most", "floor"),
    [
        ("a100_sxm", 12, 5, 0.140),
        ("a100_sxm", 48, 3, 0.126),
        ("a100_sxm", 48, 6, 0.131),
        ("a40", 48, 6, 0.090),
        ("a40", 48, 3, 0.086),
    ],
)
def test_starts_are_near_the_limit(
    gpt3: GptProblem, gpu: str, microbatches: int, most: int, floor: float
) -> None:
    """Before any search, at the baseline's time: at least this share is saved."""
    inst = Instance.of(gpt3(gpu, microbatches, max_writes=most))
    relaxed = _relaxed(inst)
    limit = budget.limit(inst, relaxed, most)
    start, _ = starts(inst, limit, most, 0.0, lambda: True)[0]
    full = inst.energy(inst.total_cost(inst.full))
    assert 1 - inst.energy(inst.total_cost(start)) / full >= floor


def test_a_descent_never_worsens_the_best() -> None:
    """From a late plan and whatever the price, the best stays on time and gets no dearer."""
    problem = _problem(3, 3, 5, 5, max_writes=3)
    inst = Instance.of(problem)
    network = inst.network
    tables = (
        network.tail,
        network.lag,
        network.into_first,
        network.into_edge,
        network.rank_first,
        network.rank_node,
        network.kind,
        inst.full,
        inst.kind_time,
        inst.kind_cost,
    )
    slow, best = np.zeros_like(inst.full), inst.full.copy()
    least = inst.total_cost(best)
    for price in (1.0, 100.0, 1e4):
        rules = (inst.deadline_s, 3, True, 0.0, price)
        after = starts_kernels.settle(tables, rules, least, slow, best)
        assert after <= least
        assert after == pytest.approx(inst.total_cost(best))
        assert max(_rank_writes(inst, best)) <= 3
        assert inst.graph.makespan(inst.durations(best)) <= inst.deadline_s * ON_TIME
        least = after


def test_the_same_problem_gives_the_same_starts(gpt3: GptProblem) -> None:
    """Nothing depends on chance."""
    problem = replace(gpt3("a40", 6, max_writes=4))
    found = []
    for _ in range(2):
        inst = Instance.of(problem)
        relaxed = _relaxed(inst)
        limit = budget.limit(inst, relaxed, 4)
        found.append(starts(inst, limit, 4, 0.0, lambda: True))
    for (a, b), (c, d) in zip(*found, strict=True):
        assert (a == c).all()
        assert (b == d).all()
