"""Trials teach what planning needs, in slack, and stop when there is nothing more to learn."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from perseusd.core.attribution import Activity
from perseusd.core.graph import Graph
from perseusd.core.knowledge import GpuFacts, Knowledge
from perseusd.core.learning import (
    CAUTION,
    ENOUGH_PER_GROUP,
    LADDER,
    OPEN_AT_START,
    Explorer,
)
from perseusd.core.model import Computation, Kind, Plan
from perseusd.core.schedules import one_f_one_b, pipeline
from perseusd.errors import PlanningError

CLOCKS = tuple(range(210, 1411, 15))
TOP = CLOCKS[-1]
MS = 1_000_000
SLOWDOWN = 0.01
Form = Callable[[float], float]


def time_ratio(x: float) -> float:
    return 0.2 + 0.8 * x


def power_falls(x: float) -> float:
    """Energy per computation falls down to half the clock."""
    return 0.25 + 0.75 * x**-3


def power_levels(x: float) -> float:
    """As on real GPUs: voltage stops falling, and energy is least between 0.6 and 0.75."""
    return 0.5 + 0.5 * x**-6


def power_hardly_falls(x: float) -> float:
    """A lower clock costs energy from the first rung on."""
    return 1 - 0.02 * (x - 1)


@dataclass
class School:
    """Four uneven stages that live every trial, with the energy counters to it."""

    power: Form = power_levels
    unlike: bool = False
    """Whether one GPU of the same model supports fewer clocks."""
    noise: float = 0.01
    now: int = 10**12
    plans: list[Plan] = field(default_factory=list)
    makespans: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pipeline = pipeline(one_f_one_b(4, 6), 0.0005)
        self.graph = Graph.from_pipeline(self.pipeline)
        gpus = {r: GpuFacts(f"GPU-{r}", "A100", CLOCKS) for r in range(4)}
        if self.unlike:
            gpus[3] = GpuFacts("GPU-3", "A100", (1200, TOP))
        self.knowledge = Knowledge(gpus)
        self.explorer = Explorer(self.pipeline, self.graph, gpus, SLOWDOWN, 0.5)
        self.random = np.random.default_rng(0)
        self.full_s = self.length([None] * len(self.graph))
        for _ in range(4):
            self.live(Plan(tuple((None,) * len(o) for o in self.pipeline.orders)))

    def base_s(self, c: Computation) -> float:
        return (0.05 if c.instruction == "forward" else 0.1) * (1, 0.9, 0.85, 0.95)[c.rank]

    def length(self, clocks: list[int | None]) -> float:
        """Makespan without noise; clocks by node."""
        durations = [
            self.base_s(c) * time_ratio(TOP / (clock or TOP))
            for c, clock in zip(self.graph.nodes, clocks, strict=True)
        ]
        return float(self.graph.makespan(np.array(durations)))

    def live(self, plan: Plan) -> None:
        clock_of: list[int | None] = [None] * len(self.graph)
        for rank, nodes in enumerate(self.graph.order):
            at, joules, activities = self.now, 0.0, []
            edges, energy = [at], [0.0]
            for node, clock in zip(nodes, plan.clocks[rank], strict=True):
                clock_of[node] = clock
                c = self.graph.nodes[node]
                x = TOP / (clock or TOP)
                seconds = self.base_s(c) * time_ratio(x) * self.random.lognormal(0, self.noise)
                self.knowledge.durations.add(c.kind, clock or TOP, seconds)
                for kind, length, watts in (
                    (c.kind, seconds, (300 if c.instruction == "forward" else 350) * self.power(x)),
                    (None, self.random.uniform(0.005, 0.03), 80.0),
                ):
                    until = at + int(length * 1e9)
                    activities.append(Activity(at, until, kind, (clock or TOP) if kind else 0))
                    at, joules = until, joules + length * watts
                    edges.append(at)
                    energy.append(joules)
            for poll in range(self.now - 100 * MS, at + 100 * MS, 20 * MS):
                ticked = poll // (50 * MS) * 50 * MS
                value = 10 * len(self.plans) * 1e4 + float(np.interp(ticked, edges, energy))
                self.knowledge.poll_counter(rank, poll, value)
            self.knowledge.add_activities(rank, activities)
        self.now += 10**11
        self.plans.append(plan)
        self.makespans.append(self.length(clock_of))

    def learn(self, most: int = 60) -> int:
        """Trials until done; how many."""
        for count in range(most):
            if self.explorer.done(self.knowledge):
                return count
            self.live(self.explorer.next_trial(self.knowledge))
        raise AssertionError(f"not done after {most} trials")

    def tried(self) -> set[int]:
        return {c for plan in self.plans for own in plan.clocks for c in own if c is not None}


def rung(level: int) -> int:
    return min(CLOCKS, key=lambda c: abs(c - LADDER[level] * TOP))


def test_learning_ends_soon_and_within_its_budget() -> None:
    """Done within 20 trials; none of them, at the true curves, is predicted longer than what was
    left of the budget, and their mean is within the share of the budget meant for predictions."""
    school = School()
    trials = school.learn()
    assert 2 <= trials <= 20
    slowdowns = [m / school.full_s - 1 for m in school.makespans[-trials:]]
    assert np.mean(slowdowns) <= SLOWDOWN * CAUTION * 1.15  # curves are still guesses at first
    assert max(slowdowns) <= trials * SLOWDOWN


def test_what_was_learned_is_enough_to_plan_on() -> None:
    """Every kind's curve reaches the third rung and is true within 3 % in time and 8 % in energy at
    every clock of it."""
    school = School()
    school.learn()
    curves, _ = school.knowledge.curves(school.graph.kinds)
    for kind, curve in curves.items():
        base = school.base_s(Computation(*kind, 0))
        watts = 300 if kind.instruction == "forward" else 350
        for clock, seconds, joules in zip(
            curve.clock_mhz, curve.time_s, curve.energy_j, strict=True
        ):
            x = TOP / clock
            assert seconds == pytest.approx(base * time_ratio(x), rel=0.03)
            assert joules == pytest.approx(base * time_ratio(x) * watts * school.power(x), rel=0.08)
        assert curve.clock_mhz[0] <= rung(OPEN_AT_START - 1)


def test_the_ladder_is_descended_only_while_it_pays() -> None:
    """Energy that keeps falling opens rung after rung; energy that does not keeps them shut, and
    nothing below the lowest allowed fraction is ever tried."""
    falling, levels, flat = School(power_falls), School(power_levels), School(power_hardly_falls)
    for school in (falling, levels, flat):
        school.learn()
    assert min(falling.tried()) == rung(len(LADDER) - 1) >= 0.5 * TOP
    assert rung(len(LADDER) - 1) < min(levels.tried()) < rung(OPEN_AT_START - 1)
    assert min(flat.tried()) == rung(OPEN_AT_START - 1)


def test_a_budget_of_nothing_slows_nothing() -> None:
    """Only windows that are wholly in slack are tried, as far as predictions go."""
    school = School(noise=0.0)
    school.explorer.slowdown = 0.0
    for _ in range(6):
        school.live(school.explorer.next_trial(school.knowledge))
    assert school.tried()
    assert max(school.makespans) <= school.full_s * 1.002


def test_windows_of_a_rank_do_not_touch() -> None:
    """Two windows side by side would be one run of two clocks, of which neither is pure."""
    school = School()
    school.learn()
    for plan in school.plans:
        for own in plan.clocks:
            for before, after in itertools.pairwise(own):
                assert before is None or after is None or before == after


def test_gpus_of_one_model_may_offer_different_clocks() -> None:
    """A GPU limited to two clocks neither breaks the others' learning nor gets clocks it lacks."""
    school = School(unlike=True)
    for _ in range(14):
        school.explorer.done(school.knowledge)
        school.live(school.explorer.next_trial(school.knowledge))
    used = {c for plan in school.plans for c in plan.clocks[3] if c is not None}
    assert used <= {1200}
    assert min(school.tried()) < 1200


def test_an_explorer_without_full_clock_times_says_so() -> None:
    """No prediction can be made, so no trial is."""
    school = School()
    fresh = Knowledge(school.knowledge.gpus)
    fresh.durations.add(Kind(0, 0, "forward"), 1200, 0.05)
    assert not school.explorer.done(fresh)
    with pytest.raises(PlanningError, match="never timed at full clock"):
        school.explorer.next_trial(fresh)


def test_a_rung_is_known_only_after_enough_samples() -> None:
    """One sample short of enough, and there is more to learn."""
    school = School(power_hardly_falls)
    school.learn()
    group = [k for k in school.graph.kinds if k.instruction == "forward"]
    clock = rung(0)
    for kind in group:  # of every other rung each kind has seen enough
        for _ in range(3):
            school.knowledge.durations.add(kind, rung(1), 0.06)
    for kind in group:
        school.knowledge.durations.seen[kind].pop(clock, None)
    for _ in range(ENOUGH_PER_GROUP - 1):
        school.knowledge.durations.add(group[0], clock, 0.054)
    assert not school.explorer.done(school.knowledge)
    school.knowledge.durations.add(group[0], clock, 0.054)
    assert school.explorer.done(school.knowledge)
