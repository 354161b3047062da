"""The interior point method against an exact solver, on curves and graphs of every shape."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from perseusd.core.graph import Graph
from perseusd.core.model import Computation, Curve, Edge, Kind, Pipeline, Problem
from perseusd.core.planner import lower_bound
from perseusd.core.planner.bound import certified_bound, conserved
from perseusd.core.planner.hull import lower_hull
from perseusd.core.planner.hulls import Hulls
from perseusd.core.planner.instance import Instance
from perseusd.core.planner.interior import relax_free
from perseusd.core.planner.network import Network
from perseusd.core.planner.relax import Group, relax
from perseusd.core.planner.times import fitted
from perseusd.core.schedules import gpipe, one_f_one_b, pipeline
from perseusd.errors import PlanningError

Floats = NDArray[np.float64]
Case = tuple[Graph, Network, Hulls, float, float]  # with the shortest and the longest makespan


def _random_pipeline(rng: np.random.Generator) -> Pipeline:
    shape = int(rng.integers(0, 5))
    lag = float(rng.choice([0.0, 0.1, 2.0]))
    if shape == 0:  # pure data parallelism
        ranks = range(int(rng.integers(1, 9)))
        return Pipeline(tuple((Computation(r, 0, "iteration", 0),) for r in ranks), ())
    if shape <= 2:
        order = one_f_one_b if shape == 1 else gpipe
        return pipeline(order(int(rng.integers(1, 6)), int(rng.integers(1, 9))), lag)
    nodes = [
        Computation(int(rng.integers(0, 5)), 0, str(rng.choice(["other", "iteration"])), m)
        for m in range(int(rng.integers(1, 40)))
    ]
    pairs = np.sort(rng.integers(0, len(nodes), (int(rng.integers(0, 3 * len(nodes))), 2)))
    edges = [Edge(nodes[a], nodes[b], lag) for a, b in pairs.tolist() if a != b]
    return Pipeline(tuple(tuple(n for n in nodes if n.rank == r) for r in range(5)), tuple(edges))


def _random_curve(rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Time and cost at up to 80 clocks: flat, capped, noisy, with duplicates, or of no shape."""
    points, scale = int(rng.integers(1, 81)), 10 ** float(rng.uniform(-1, 1))
    clock = np.sort(rng.uniform(0.3, 1.0, points))
    time = scale * (0.3 + 0.7 / clock)
    cost = scale * (320 * clock**3 + 80 * (0.3 + 0.7 / clock)) - 90 * time
    shape = int(rng.integers(0, 6))
    if shape == 1:
        time, cost = np.full(points, scale), np.full(points, -scale)
    elif shape == 2:
        capped = clock > clock[points // 2]
        time[capped] = time[points // 2] * (1 + 1e-4 * rng.normal(size=int(capped.sum())))
    elif shape == 3:
        time, cost = time * rng.uniform(0.98, 1.02, points), cost * rng.uniform(0.98, 1.02, points)
    elif shape == 4:
        time = scale * rng.integers(1, 4, points).astype(float)
        cost = scale * rng.integers(-3, 4, points).astype(float)
    elif shape == 5:
        time, cost = scale * rng.uniform(0.1, 1.0, points), scale * rng.normal(size=points)
    return time, cost


def _case(rng: np.random.Generator) -> Case:
    graph = Graph.from_pipeline(_random_pipeline(rng))
    curves = [_random_curve(rng) for _ in graph.kinds]
    first = np.cumsum([0, *(len(time) for time, _ in curves)])
    hulls = Hulls.of_points(
        first, np.concatenate([t for t, _ in curves]), np.concatenate([c for _, c in curves])
    )
    fastest = hulls.time[hulls.first[:-1]][graph.kind_index]
    slowest = hulls.time[hulls.first[1:] - 1][graph.kind_index]
    shortest, longest = float(graph.makespan(fastest)), float(graph.makespan(slowest))
    return graph, Network.of(graph), hulls, shortest, longest


def _groups(graph: Graph, hulls: Hulls) -> list[Group]:
    points = [slice(a, b) for a, b in zip(hulls.first[:-1], hulls.first[1:], strict=True)]
    return [
        Group(
            np.array([node]),
            np.zeros(1, dtype=np.intp),
            hulls.time[None, points[kind]],
            hulls.cost[points[kind]],
        )
        for node, kind in enumerate(graph.kind_index.tolist())
    ]


def _scale(graph: Graph, hulls: Hulls) -> float:
    return float(np.abs(hulls.cost[hulls.first[:-1]])[graph.kind_index].sum()) + 1e-3


@given(st.integers(0, 2**32 - 1), st.floats(0.0, 1.05))
@settings(deadline=None, max_examples=80)
def test_cost_and_bound_enclose_the_optimum(seed: int, share: float) -> None:
    """Within 2e-5 of the energy of one another; what HiGHS finds and proves lies not outside.

    HiGHS keeps the deadline to about 1e-6 only, which is worth much where curves are steep: its
    durations are made to keep it, and its flow to conserve.
    """
    graph, network, hulls, shortest, longest = _case(np.random.default_rng(seed))
    deadline = shortest + share * (longest - shortest)
    scale = _scale(graph, hulls)
    found = relax_free(network, hulls, deadline, energy_scale_j=scale)
    assert found.bound <= found.cost <= found.bound + 2.1e-5 * scale
    exact = relax(graph, _groups(graph, hulls), deadline)
    ends = graph.earliest(exact.durations) + exact.durations
    assert found.bound <= fitted(network, hulls, ends, deadline)[1]
    flow = conserved(network, exact.edge_flow[0], exact.last_flow[0])
    assert found.cost >= certified_bound(network, hulls, deadline, *flow)
    if share >= 0.01:
        assert found.cost == pytest.approx(exact.cost, abs=1e-3 * scale)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1e-9, 1e-4, 0.3, 0.999, 1.0, 3.0]))
@settings(deadline=None, max_examples=80)
def test_a_solution_is_feasible_and_proves_its_bound(seed: int, share: float) -> None:
    """Durations lie on the hulls, keep the deadline and cost what is said; the flow proves it."""
    graph, network, hulls, shortest, longest = _case(np.random.default_rng(seed))
    deadline = shortest + share * (longest - shortest)
    found = relax_free(network, hulls, deadline)
    assert graph.makespan(found.durations) <= deadline * (1 + 1e-12)
    cost = 0.0
    for node, kind in enumerate(graph.kind_index.tolist()):
        points = slice(hulls.first[kind], hulls.first[kind + 1])
        time = hulls.time[points]
        assert time[0] <= found.durations[node] <= time[-1]
        cost += float(np.interp(found.durations[node], time, hulls.cost[points]))
    assert found.cost == pytest.approx(cost, rel=1e-9, abs=1e-9 * _scale(graph, hulls))
    flow = found.edge_flow[0], found.last_flow[0]
    assert found.bound == certified_bound(network, hulls, deadline, *flow)
    out = np.bincount(network.tail, flow[0], minlength=len(network)) + flow[1]
    assert found.price == pytest.approx(out)


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_a_bound_holds_however_hard_the_numbers(seed: int) -> None:
    """Twelve orders of magnitude between curves: perhaps not accurate, never wrong."""
    rng = np.random.default_rng(seed)
    graph, network, hulls, _, _ = _case(rng)
    stretch = 10.0 ** rng.uniform(-6, 6, len(graph.kinds)).repeat(np.diff(hulls.first))
    hulls = replace(hulls, time=hulls.time * stretch, cost=hulls.cost * stretch[::-1].max())
    fastest = hulls.time[hulls.first[:-1]][graph.kind_index]
    deadline = float(graph.makespan(fastest)) * (1 + float(rng.choice([0.0, 1e-6, 0.1])))
    found = relax_free(network, hulls, deadline)
    assert np.isfinite([found.bound, found.cost]).all()
    assert found.bound <= found.cost
    assert graph.makespan(found.durations) <= deadline * (1 + 1e-12)


def test_a_later_deadline_costs_no_more() -> None:
    """Bounds and costs fall as the deadline grows, to what everything costs at least."""
    graph, network, hulls, shortest, longest = _case(np.random.default_rng(12))
    scale = _scale(graph, hulls)
    found = [
        relax_free(network, hulls, deadline, energy_scale_j=scale)
        for deadline in np.linspace(shortest, longest * 1.1, 12)
    ]
    for earlier, later in itertools.pairwise(found):
        assert later.bound <= earlier.cost + 1e-12 * scale
        assert later.deadline_price <= earlier.deadline_price * 1.05 + 1e-3 * scale
    least = hulls.cost[hulls.first[1:] - 1][graph.kind_index].sum()
    assert found[-1].cost == pytest.approx(least)
    assert found[-1].bound == pytest.approx(least)
    assert found[-1].deadline_price == 0.0


def test_no_mix_for_an_impossible_deadline() -> None:
    """A deadline below the shortest is refused, and the shortest named."""
    _, network, hulls, shortest, _ = _case(np.random.default_rng(3))
    with pytest.raises(PlanningError, match=f"the shortest is {shortest:.6g} s"):
        relax_free(network, hulls, shortest * 0.99)
    with pytest.raises(PlanningError, match="the shortest is"):
        relax_free(network, hulls, float("nan"))


def test_nothing_to_choose() -> None:
    """Where every computation has one usable point, that is the answer, and it is certain."""
    graph = Graph.from_pipeline(pipeline(one_f_one_b(2, 3)))
    kinds = len(graph.kinds)
    hulls = Hulls.of_points(np.arange(kinds + 1), np.ones(kinds), -np.ones(kinds))
    found = relax_free(Network.of(graph), hulls, float(graph.makespan(np.ones(len(graph)))))
    assert found.cost == pytest.approx(-len(graph))
    assert found.bound == pytest.approx(-len(graph))


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=40)
def test_any_ends_can_be_fitted(seed: int) -> None:
    """Durations from nonsense still keep the deadline and lie on the hulls."""
    rng = np.random.default_rng(seed)
    graph, network, hulls, shortest, longest = _case(rng)
    ends = rng.normal(0.0, longest, len(graph))
    ends[rng.random(len(graph)) < 0.2] = np.nan
    deadline = shortest + float(rng.random()) * (longest - shortest)
    durations, cost = fitted(network, hulls, ends, deadline)
    assert graph.makespan(durations) <= deadline * (1 + 1e-12)
    assert np.isfinite(cost)


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=60)
def test_hulls_are_those_of_each_curve(seed: int) -> None:
    """As the plain hull of one curve, and every point knows which option of its kind it is."""
    rng = np.random.default_rng(seed)
    curves = {}
    for rank in range(3):
        points = int(rng.integers(2, 30))
        time, energy = rng.integers(1, 9, (2, points)).astype(float)
        clocks = tuple(range(900, 900 + points))
        curves[Kind(rank, 0, "iteration")] = Curve(clocks, tuple(time), tuple(energy))
    orders = tuple((Computation(rank, 0, "iteration", 0),) for rank in range(3))
    problem = Problem(Pipeline(orders, ()), curves, [0.5, 1.0, 0.0])
    inst = Instance.of(problem)
    hulls = Hulls.of(problem, inst.graph)
    for k, kind in enumerate(inst.graph.kinds):
        curve, points_of = problem.curves[kind], slice(hulls.first[k], hulls.first[k + 1])
        time = np.array(curve.time_s)
        cost = np.array(curve.energy_j) - problem.blocking_power_w[kind.rank] * time
        plain = lower_hull(time, cost)
        assert hulls.time[points_of].tolist() == time[plain].tolist()
        assert hulls.cost[points_of].tolist() == cost[plain].tolist()
        option = hulls.option[points_of]
        assert inst.kind_time[k, option].tolist() == time[plain].tolist()
        assert inst.kind_cost[k, option].tolist() == pytest.approx(cost[plain].tolist())


@pytest.mark.parametrize("gpu", ["a100_sxm", "a40"])
@pytest.mark.parametrize("ratio", [1.0, 1.005, 1.05, 1.2])
def test_real_profiles(gpt3: Callable[..., Problem], gpu: str, ratio: float) -> None:
    """GPT-3 175B: cost and certified bound within 2e-5 of the energy, HiGHS between them."""
    problem = gpt3(gpu, 12, max_writes=None, deadline_ratio=ratio)
    inst = Instance.of(problem)
    hulls = Hulls.of(problem, inst.graph)
    scale = inst.energy(inst.total_cost(inst.full))
    found = relax_free(inst.network, hulls, inst.deadline_s, energy_scale_j=scale)
    assert found.cost - found.bound <= 2e-5 * scale
    exact = relax(inst.graph, _groups(inst.graph, hulls), inst.deadline_s)
    flow = conserved(inst.network, exact.edge_flow[0], exact.last_flow[0])
    assert certified_bound(inst.network, hulls, inst.deadline_s, *flow) <= found.cost
    assert exact.cost == pytest.approx(found.cost, abs=3e-5 * scale)
    assert lower_bound(problem) == inst.energy(found.bound)
