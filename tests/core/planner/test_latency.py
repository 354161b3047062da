"""Clock writes that take time: the model by hand, the compiled simulation, and the repair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perseusd.core.model import Computation, Curve, Edge, Kind, Pipeline, Plan, Problem
from perseusd.core.planner import evaluate, noise
from perseusd.core.planner.instance import Instance
from perseusd.core.planner.landing import Landed, land, time_and_energy
from perseusd.core.planner.latency import SlowWrites
from perseusd.core.planner.repair import repaired
from perseusd.core.schedules import one_f_one_b, pipeline

GptProblem = Callable[..., Problem]

#: 1 s and 10 J at full clock, 2 s and 12 J at 500 MHz; blocking power is 1 W
CURVE = Curve((500, 1000), (2.0, 1.0), (12.0, 10.0))
SLOW_COST, FULL_COST = 10.0, 9.0


def ranks(*lengths: int, edges: tuple[tuple[int, int, int, int], ...] = ()) -> Problem:
    """Ranks with so many computations each; edges (rank, position, rank, position)."""
    orders = tuple(
        tuple(Computation(r, 0, "forward", m) for m in range(n)) for r, n in enumerate(lengths)
    )
    built = Pipeline(orders, tuple(Edge(orders[a][b], orders[c][d], 0.0) for a, b, c, d in edges))
    curves = {Kind(r, 0, "forward"): CURVE for r in range(len(lengths))}
    return Problem(built, curves, [1.0] * len(lengths), write_latency_s=0.5)


def one(problem: Problem, *clocks: tuple[int | None, ...]) -> Landed:
    """The one iteration of a plan without noise."""
    return land(problem, Plan(clocks), noise.of_problem(problem))[0]


def ends(problem: Problem, landed: Landed) -> list[float]:
    """When each rank's last computation ends, if it ran at full clock to the end."""
    return [landed.start_s[order[-1]] + 1.0 for order in problem.pipeline.orders]


def test_a_computation_is_split_where_its_write_lands() -> None:
    """Half of it runs at the old clock for 0.5 s, the rest at the new one; cost by share."""
    landed = one(ranks(2), (None, 500))
    assert landed.end_s == pytest.approx(1.0 + 0.5 + 0.5 * 2.0)
    assert landed.cost_j == pytest.approx(FULL_COST + 0.5 * FULL_COST + 0.5 * SLOW_COST)


def test_the_first_clock_is_asked_for_when_the_iteration_begins() -> None:
    """The rank starts at full clock, or where it does not go back there at the end, at its last."""
    problem = ranks(2)
    assert one(problem, (500, None)).start_s[problem.pipeline.orders[0][1]] == pytest.approx(1.5)
    cyclic = replace(problem, full_clock_at_end=False)
    landed = one(cyclic, (None, 500))  # a quarter at 500 MHz
    assert landed.start_s[problem.pipeline.orders[0][1]] == pytest.approx(0.5 + 0.75)


def test_a_write_that_lands_while_the_rank_waits_costs_nothing() -> None:
    """The second rank's second computation waits 1 s for the first rank: as if it took no time."""
    problem = ranks(2, 2, edges=((0, 1, 1, 1),))
    clocks = (None, None), (None, 500)
    slow, immediate = one(problem, *clocks), one(replace(problem, write_latency_s=0.0), *clocks)
    assert (slow.end_s, slow.cost_j) == (immediate.end_s, immediate.cost_j)


def test_a_group_of_eight_takes_eight_writes_to_raise_and_one_to_lower() -> None:
    """The group is as slow as its slowest GPU: faster only with the last write."""
    problem = replace(ranks(2), write_latency_s=0.1, gpus_per_rank=8, gpus_per_node=8)
    raised = one(replace(problem, full_clock_at_end=False), (None, 500))
    assert raised.start_s[problem.pipeline.orders[0][1]] == pytest.approx(0.8 + 0.6)
    lowered = one(problem, (None, 500))
    assert lowered.end_s == pytest.approx(1.0 + 0.1 + 0.9 * 2.0)


def test_a_group_on_two_nodes_is_written_by_both_at_once() -> None:
    """Eight GPUs on two nodes of four take four times the latency to raise."""
    problem = replace(
        ranks(2), write_latency_s=0.1, gpus_per_rank=8, gpus_per_node=4, full_clock_at_end=False
    )
    landed = one(problem, (None, 500))
    assert landed.start_s[problem.pipeline.orders[0][1]] == pytest.approx(0.4 + 0.8)


def test_the_writes_of_a_node_wait_for_each_other_in_the_order_they_were_asked_for() -> None:
    """Asked for at once the lower rank goes first; asked for sooner, the other one."""
    shared = replace(ranks(3, 3), gpus_per_node=2, write_latency_s=0.25)
    apart = replace(shared, gpus_per_node=1)
    both = (None, 500, None), (None, 500, None)
    # The lowering costs (1 − 0.25) s of 1 s more, then the raise saves nothing for 0.25 s.
    assert one(apart, *both).end_s == pytest.approx(1.0 + 1.75 + 1.125)
    assert ends(shared, one(shared, *both)) != ends(apart, one(apart, *both))
    landed = one(shared, *both)
    second = [landed.start_s[order[2]] for order in shared.pipeline.orders]
    assert second == pytest.approx([1.0 + 1.75, 1.0 + 0.5 + 0.5 * 2.0])
    sooner = one(shared, (None, 500, None), (500, 500, None))
    # Rank 1 is written at the start; at 1 s the node is free for rank 0.
    assert sooner.start_s[shared.pipeline.orders[0][2]] == pytest.approx(1.0 + 1.75)


def test_the_write_back_to_full_clock_occupies_the_node() -> None:
    """Rank 0 ends as rank 1 asks: its write back goes first, rank 1's lands one latency later."""
    problem = replace(ranks(1, 2), gpus_per_node=2, write_latency_s=0.25)
    alone = one(replace(problem, gpus_per_node=1), (500,), (None, 500))
    assert alone.end_s == pytest.approx(1.0 + 0.25 + 0.75 * 2.0)
    # Rank 0: 0.25 s at full clock, then 0.75 of it at 500 MHz: it ends at 1.75 s.
    later = one(problem, (500,), (None, None))
    assert later.end_s == pytest.approx(2.0)
    longer = replace(ranks(1, 3), gpus_per_node=2, write_latency_s=1.0)
    # Rank 0 has ended by 1 s, when its lowering lands, and asks for full clock; so does rank 1 ask.
    landed = one(longer, (500,), (None, 500, 500))
    assert landed.start_s[longer.pipeline.orders[1][2]] == pytest.approx(2.0)
    assert landed.end_s == pytest.approx(3.0)  # rank 0's write back lands at 2 s, rank 1's at 3 s


def test_a_new_request_withdraws_what_has_not_begun() -> None:
    """Rank 1 asks to lower and then to raise while rank 0's write is under way: nothing is left."""
    problem = replace(ranks(2, 3), gpus_per_node=2, write_latency_s=5.0)
    landed = one(problem, (500, 500), (None, 500, None))
    assert landed.end_s == pytest.approx(3.0)
    assert landed.cost_j == pytest.approx(5 * FULL_COST)


def test_clocks_without_a_measurement_are_taken_in_between_and_below() -> None:
    """Halfway between two points is half of each; below the lowest, inversely as the clock."""
    assert time_and_energy(CURVE, 750) == pytest.approx((1.5, 11.0))
    assert time_and_energy(CURVE, 250) == pytest.approx((4.0, 24.0))
    assert time_and_energy(CURVE, None) == (1.0, 10.0)


def test_an_evaluation_is_the_worse_of_slow_and_immediate_writes() -> None:
    """A lowering that lands late ends sooner than one that takes no time: that one counts."""
    problem = ranks(2)
    told = evaluate(problem, Plan(((None, 500),)))
    assert told.iteration_time_s == pytest.approx(3.0)
    assert told.energy_j == pytest.approx(FULL_COST + SLOW_COST + 3.0)


@st.composite
def planned(draw: st.DrawFn) -> tuple[Problem, np.ndarray]:
    """A pipeline whose ranks share nodes, and (n,) options drawn at random."""
    stages, microbatches = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    built = pipeline(one_f_one_b(stages, microbatches))
    curves = {}
    for kind in {c.kind for order in built.orders for c in order}:
        clocks = np.sort(rng.choice(np.arange(800, 1400, 100), 4, replace=False))
        time = rng.uniform(0.5, 2.0) * np.sort(rng.uniform(1.0, 1.6, 4))[::-1]
        energy = np.sort(rng.uniform(50.0, 100.0, 4))
        curves[kind] = Curve(tuple(clocks.tolist()), tuple(time), tuple(energy))
    problem = Problem(
        built,
        curves,
        [20.0] * stages,
        deadline_ratio=draw(st.sampled_from([1.0, 1.1])),
        noise=draw(st.sampled_from([0.0, 0.05])),
        confidence=draw(st.sampled_from([None, 0.9])),
        max_writes=draw(st.sampled_from([None, 3, 6])),
        full_clock_at_end=draw(st.booleans()),
        write_latency_s=draw(st.sampled_from([0.001, 0.1, 1.0])),
        gpus_per_rank=draw(st.integers(1, 4)),
        gpus_per_node=draw(st.integers(1, 6)),
    )
    inst = Instance.of(problem)
    option = rng.integers(0, inst.full + 1)
    if problem.max_writes is not None:  # one run below full clock
        low = option[0] % (inst.full.min() + 1)
        option = np.where(inst.graph.position % (2 * microbatches) < microbatches, low, inst.full)
    return problem, option


@settings(max_examples=60, deadline=None)
@given(planned())
def test_the_compiled_simulation_agrees_with_the_plain_one(
    given_: tuple[Problem, np.ndarray],
) -> None:
    """The same iteration time and energy, for groups, shared nodes and noise."""
    problem, option = given_
    inst = Instance.of(problem)
    slow = SlowWrites.of(inst)
    made, cost = slow.outcome(option)
    end = float(slow.counted(made))
    told = evaluate(problem, inst.plan(option))
    assert end == pytest.approx(told.iteration_time_s, rel=1e-12)
    assert inst.energy(cost, end) == pytest.approx(told.energy_j, rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(planned())
def test_writes_that_take_no_time_change_nothing(given_: tuple[Problem, np.ndarray]) -> None:
    """With latency 0 the event simulation gives the plain makespan and cost."""
    problem, option = given_
    problem = replace(problem, write_latency_s=0.0)
    inst = Instance.of(problem)
    landed = land(problem, inst.plan(option), noise.of_problem(problem))
    durations = inst.durations(option)[:, None] * inst.factor
    assert [one.end_s for one in landed] == pytest.approx(inst.graph.makespan(durations), rel=1e-9)
    assert np.mean([one.cost_j for one in landed]) == pytest.approx(inst.total_cost(option))


@settings(max_examples=15, deadline=None)
@given(planned(), st.integers(0, 30))
def test_a_repaired_plan_is_never_late(given_: tuple[Problem, np.ndarray], steps: int) -> None:
    """In either model, however soon it is stopped; within the writes; and more time is no worse."""
    problem, option = given_
    inst = Instance.of(problem)
    value = []
    for most in (steps, steps + 20):
        left = iter(range(most))
        plan = inst.plan(repaired(inst, option, lambda left=left: next(left, None) is not None))
        told = evaluate(problem, plan)
        assert told.iteration_time_s <= told.deadline_s * (1 + 1e-9)
        assert evaluate(replace(problem, write_latency_s=0.0), plan).iteration_time_s <= (
            told.deadline_s * (1 + 1e-9)
        )
        value.append(told.energy_j)
    assert value[1] <= value[0] * (1 + 1e-12)


@pytest.mark.parametrize("gpus_per_node", [1, 8])
def test_a_real_plan_that_is_late_is_repaired_and_saves_more(
    gpt3: GptProblem, gpus_per_node: int
) -> None:
    """A coarse plan, lower in warm-up and cool-down and 0.4 % late, ends on time and saves 8 %."""
    problem = gpt3("a100_sxm", 12, max_writes=4, write_latency_s=0.015, gpus_per_node=gpus_per_node)
    inst = Instance.of(problem)
    option = inst.full.copy()
    for rank, nodes in enumerate(inst.graph.order[:-1]):
        option[nodes[: 7 - rank]] -= 4
        option[nodes[rank - 7 :]] -= 4
    left = iter(range(40))
    plan = inst.plan(repaired(inst, option, lambda: next(left, None) is not None))
    told, full = evaluate(problem, plan), evaluate(problem, inst.plan(inst.full))
    assert evaluate(problem, inst.plan(option)).iteration_time_s > told.deadline_s * 1.003
    assert told.iteration_time_s <= told.deadline_s * (1 + 1e-9)
    assert 1 - told.energy_j / full.energy_j > 0.08
