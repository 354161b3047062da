"""The plan for free clocks: its first guess, and its improvement chain by chain."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from perseusd.core.model import Computation, Curve, Edge, Kind, Pipeline, Problem
from perseusd.core.planner import chains, first, groups
from perseusd.core.planner.bound import least_cost
from perseusd.core.planner.evaluation import evaluate
from perseusd.core.planner.events import Layout
from perseusd.core.planner.instance import Instance
from perseusd.core.planner.relax import Relaxed, relax
from perseusd.core.schedules import gpipe, one_f_one_b, pipeline

GptProblem = Callable[..., Problem]
Options = NDArray[np.intp]

ON_TIME = 1 + 1e-12
LONGEST = 10_000


@st.composite
def pipelines(draw: st.DrawFn) -> Pipeline:
    """A schedule, or random acyclic dependencies between random orders, with or without lags."""
    lag = draw(st.sampled_from([0.0, 0.05, 0.3]))
    if draw(st.booleans()):
        schedule = draw(st.sampled_from([one_f_one_b, gpipe]))
        return pipeline(schedule(draw(st.integers(1, 4)), draw(st.integers(1, 6))), lag)
    ranks = [0, *draw(st.lists(st.integers(0, 3), max_size=24))]
    names = st.sampled_from(["forward", "backward"])
    nodes = [Computation(rank, 0, draw(names), m) for m, rank in enumerate(ranks)]
    pairs = [(a, b) for a, b in itertools.combinations(nodes, 2) if a.rank != b.rank]
    chosen = draw(st.lists(st.sampled_from(pairs), max_size=30, unique=True)) if pairs else []
    lags = st.sampled_from([0.0, lag])
    orders = [tuple(n for n in nodes if n.rank == rank) for rank in range(4)]
    used = [order for order in orders if order]
    number = {order[0].rank: k for k, order in enumerate(used)}

    def renumbered(c: Computation) -> Computation:
        return c._replace(rank=number[c.rank])

    return Pipeline(
        tuple(tuple(map(renumbered, order)) for order in used),
        tuple(Edge(renumbered(a), renumbered(b), draw(lags)) for a, b in chosen),
    )


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Curves as measured ones are: not quite monotone, far from convex, some of them flat."""
    built = draw(pipelines())
    kinds = sorted({c.kind for order in built.orders for c in order})
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return Problem(
        built,
        {kind: _curve(rng, draw(st.integers(2, 9))) for kind in kinds},
        [draw(st.sampled_from([0.0, 20.0, 60.0])) for _ in built.orders],
        deadline_ratio=draw(st.sampled_from([1.0, 1.005, 1.05, 1.2, 2.0])),
    )


def _curve(rng: np.random.Generator, points: int) -> Curve:
    clock = np.linspace(800, 1400, points)
    bend = rng.uniform(0.5, 3.0)
    time = rng.uniform(0.3, 2.0) * (0.3 + 0.7 * 1400 / clock) * rng.uniform(0.98, 1.02, points)
    energy = rng.uniform(50, 150) * (0.4 + 0.6 * (clock / 1400) ** bend)
    energy *= rng.uniform(0.9, 1.1, points)
    return Curve(tuple(clock.astype(int).tolist()), tuple(time.tolist()), tuple(energy.tolist()))


def _relaxed(inst: Instance) -> Relaxed:
    found = groups.free(inst.problem, inst.graph)
    return relax(inst.graph, found, inst.tightest_s)


def _bound(inst: Instance) -> float:
    return least_cost(inst.graph, groups.free(inst.problem, inst.graph), inst.tightest_s)


def _on_time(inst: Instance, option: Options) -> bool:
    return bool(inst.graph.makespan(inst.durations(option)) <= inst.tightest_s * ON_TIME)


def _while(chains_left: int) -> Callable[[], bool]:
    """True so many times."""
    left = itertools.chain(itertools.repeat(True, chains_left), itertools.repeat(False))
    return lambda: next(left)


@settings(max_examples=60, deadline=None)
@given(problems())
def test_plans_are_on_time_and_above_the_bound(problem: Problem) -> None:
    """On any graph with any lags: the first plan is not late, its improvement neither, and no
    dearer, by the evaluator too; neither is below what is proved."""
    inst = Instance.of(problem)
    relaxed = _relaxed(inst)
    start = first.placed(inst, relaxed)
    better = chains.improve(inst, relaxed, start, _while(LONGEST))
    assert _on_time(inst, start)
    assert _on_time(inst, better)
    assert inst.total_cost(better) <= inst.total_cost(start) <= inst.total_cost(inst.full)
    told = evaluate(problem, inst.plan(better))
    assert told.iteration_time_s <= told.deadline_s * ON_TIME
    scale = abs(inst.total_cost(inst.full)) + 1
    assert inst.total_cost(better) >= _bound(inst) - 1e-6 * scale


@settings(max_examples=25, deadline=None)
@given(problems(), st.lists(st.integers(0, 60), min_size=2, max_size=4))
def test_more_time_is_never_worse(problem: Problem, stops: Sequence[int]) -> None:
    """Stopped after more chains a plan costs no more, and all of them are on time."""
    inst = Instance.of(problem)
    relaxed = _relaxed(inst)
    found = [
        chains.improve(inst, relaxed, inst.full, _while(count)) for count in (0, *sorted(stops))
    ]
    assert found[0].tolist() == inst.full.tolist() or inst.total_cost(found[0]) <= inst.total_cost(
        inst.full
    )
    for sooner, later in itertools.pairwise(found):
        assert inst.total_cost(later) <= inst.total_cost(sooner)
        assert _on_time(inst, later)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_small_jobs_come_within_one_per_cent_of_the_optimum(seed: int) -> None:
    """Every assignment tried, on jobs of four to twelve computations; energy with waiting."""
    rng = np.random.default_rng(seed)
    ranks, microbatches, points = ((2, 1, 4), (2, 2, 3), (3, 2, 2), (2, 3, 2))[seed % 4]
    built = pipeline(one_f_one_b(ranks, microbatches), float(rng.choice([0.0, 0.1])))
    kinds = sorted({c.kind for order in built.orders for c in order})
    curves = {kind: _curve(rng, points) for kind in kinds}
    ratio = float(rng.choice([1.0, 1.02, 1.1, 1.3]))
    inst = Instance.of(Problem(built, curves, [30.0] * ranks, deadline_ratio=ratio))
    relaxed = _relaxed(inst)
    start = first.placed(inst, relaxed)
    found = chains.improve(inst, relaxed, start, _while(LONGEST))
    every = np.array(list(itertools.product(*(range(full + 1) for full in inst.full)))).T
    node = np.arange(len(inst.graph))[:, None]
    ends = inst.graph.makespan(inst.time[node, every])
    best = float(inst.cost[node, every].sum(axis=0)[ends <= inst.tightest_s * ON_TIME].min())
    energy = inst.energy(inst.total_cost(found))
    assert inst.energy(best) * (1 - 1e-9) <= energy <= 1.01 * inst.energy(best)


def test_a_late_start_is_not_kept() -> None:
    """Given options that are late, full clock is what is improved."""
    rng = np.random.default_rng(3)
    built = pipeline(one_f_one_b(3, 4))
    kinds = sorted({c.kind for order in built.orders for c in order})
    inst = Instance.of(Problem(built, {kind: _curve(rng, 6) for kind in kinds}, [30.0] * 3))
    slowest = np.zeros(len(inst.graph), dtype=np.intp)
    assert not _on_time(inst, slowest)
    assert _on_time(inst, chains.improve(inst, _relaxed(inst), slowest, _while(LONGEST)))


def test_good_enough_ends_the_search(gpt3: GptProblem) -> None:
    """Asked for no more than the start costs, the start is the answer."""
    inst = Instance.of(gpt3("a100_sxm", 4, max_writes=None, deadline_ratio=1.05))
    relaxed = _relaxed(inst)
    start = first.placed(inst, relaxed)
    asked = _while(LONGEST)
    same = chains.improve(inst, relaxed, start, asked, inst.total_cost(start))
    assert same.tolist() == start.tolist()
    assert inst.total_cost(chains.improve(inst, relaxed, start, asked)) < inst.total_cost(start)


def test_the_same_problem_has_the_same_plan(gpt3: GptProblem) -> None:
    """Nothing random in it depends on when or how often it runs."""
    inst = Instance.of(gpt3("a40", 6, max_writes=None))
    relaxed = _relaxed(inst)
    once, again = (
        chains.improve(inst, relaxed, first.placed(inst, relaxed), _while(LONGEST))
        for _ in range(2)
    )
    assert once.tolist() == again.tolist()


@pytest.mark.parametrize(
    ("gpu", "ratio", "most"),
    [
        ("a100_sxm", 1.0, 1.0015),
        ("a100_sxm", 1.05, 1.0012),
        ("a40", 1.0, 1.0035),
        ("a40", 1.05, 1.0012),
    ],
)
def test_how_near_the_bound_on_gpt3_175b(
    gpt3: GptProblem, gpu: str, ratio: float, most: float
) -> None:
    """12 microbatches: energy over the certified bound, as ceilings that may only be lowered."""
    inst = Instance.of(gpt3(gpu, 12, max_writes=None, deadline_ratio=ratio))
    relaxed = _relaxed(inst)
    start = first.placed(inst, relaxed)
    found = chains.improve(inst, relaxed, start, _while(LONGEST))
    assert inst.energy(inst.total_cost(found)) <= most * inst.energy(_bound(inst))


def test_a_longer_deadline_costs_no_more(gpt3: GptProblem) -> None:
    """Over six deadlines, as far apart as deadlines are asked for, on both profiles."""
    for gpu in ("a100_sxm", "a40"):
        costs = []
        for ratio in (1.0, 1.005, 1.02, 1.05, 1.1, 1.2):
            inst = Instance.of(gpt3(gpu, 12, max_writes=None, deadline_ratio=ratio))
            relaxed = _relaxed(inst)
            start = first.placed(inst, relaxed)
            costs.append(inst.total_cost(chains.improve(inst, relaxed, start, _while(LONGEST))))
        assert costs == sorted(costs, reverse=True)


def test_one_chain_is_timed_exactly() -> None:
    """One rank alone: a single pass finds the best assignment there is, by trying all."""
    rng = np.random.default_rng(11)
    order = tuple(Computation(0, m, "forward", 0) for m in range(5))
    curves = {Kind(0, m, "forward"): _curve(rng, 4) for m in range(5)}
    problem = Problem(Pipeline((order,), ()), curves, [30.0], deadline_ratio=1.1)
    inst = Instance.of(problem)
    relaxed = replace(_relaxed(inst), bound=-np.inf)
    found = chains.improve(inst, relaxed, inst.full, _while(1))
    every = (np.array(o, dtype=np.intp) for o in itertools.product(range(4), repeat=5))
    best = min(inst.total_cost(o) for o in every if o.max() < 4 and _on_time(inst, o))
    assert inst.total_cost(found) == pytest.approx(best, rel=1e-3)


def test_ranks_that_exchange_share_their_events() -> None:
    """In 1F1B's steady state two computations end and two start at an event, whatever the lags."""
    layouts = [
        Layout.of(Instance.of(_even(pipeline(one_f_one_b(4, 12), lag))).network)
        for lag in (0.0, 0.1)
    ]
    members = np.bincount(layouts[0].arrays[1])
    assert members.max() == 2
    assert (members == 2).sum() >= 3 * (12 - 4)
    assert layouts[0].most_near == 4
    for one, other in zip(layouts[0].arrays, layouts[1].arrays, strict=True):
        assert one.tolist() == other.tolist()


def test_crossings_cover_all_once() -> None:
    """Every computation is on one path, and a path follows dependencies."""
    network = Instance.of(_even(pipeline(one_f_one_b(4, 12)))).network
    paths = chains._crossings(network)
    assert sorted(np.concatenate(paths).tolist()) == list(range(len(network)))
    follows = set(zip(network.tail.tolist(), network.head.tolist(), strict=True))
    steps = [pair for path in paths for pair in itertools.pairwise(path.tolist())]
    assert set(steps) <= follows
    crossing = np.mean([network.rank[a] != network.rank[b] for a, b in steps])
    assert crossing > 0.5


def _even(built: Pipeline) -> Problem:
    rng = np.random.default_rng(5)
    kinds = sorted({c.kind for order in built.orders for c in order})
    curve = _curve(rng, 6)
    return Problem(built, dict.fromkeys(kinds, curve), [30.0] * built.ranks)
