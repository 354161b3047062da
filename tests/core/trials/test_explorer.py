"""Trials teach what planning needs, in slack, and stop when there is nothing more to learn."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from perseusd.core.graph import Graph
from perseusd.core.learned.knowledge import GpuFacts, Knowledge
from perseusd.core.model import Computation, Kind, Plan
from perseusd.core.schedules import one_f_one_b, pipeline
from perseusd.core.trials.explorer import LADDER, OPEN_AT_START, Explorer
from perseusd.errors import PlanningError
from tests.core.energy.activity import Activity, together

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
    """Uneven stages that live every trial, with the energy counters to it."""

    power: Form = power_levels
    unlike: bool = False
    """Whether one GPU of the same model supports fewer clocks."""
    noise: float = 0.01
    stages: int = 4
    microbatches: int = 6
    now: int = 10**12
    plans: list[Plan] = field(default_factory=list)
    makespans: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pipeline = pipeline(one_f_one_b(self.stages, self.microbatches), 0.0005)
        self.graph = Graph.from_pipeline(self.pipeline)
        gpus = {r: GpuFacts(f"GPU-{r}", "A100", CLOCKS) for r in range(self.stages)}
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
            self.knowledge.add_activities(rank, together(activities))
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


@pytest.fixture(scope="module")
def learned() -> tuple[School, int]:
    """A school that is done, and after how many trials."""
    school = School()
    return school, school.learn()


def test_learning_ends_soon_and_within_its_budget(learned: tuple[School, int]) -> None:
    """Done within 12 trials; at the true curves their mean slowdown is within the budget, and none
    takes more than what the ones before it left."""
    school, trials = learned
    assert 2 <= trials <= 12
    slowdowns = [m / school.full_s - 1 for m in school.makespans[-trials:]]
    assert np.mean(slowdowns) <= SLOWDOWN
    assert max(slowdowns) <= trials * SLOWDOWN


def test_what_was_learned_is_enough_to_plan_on(learned: tuple[School, int]) -> None:
    """Every kind's curve reaches the rung where energy is least, and down to there is true within
    3 % in time and 5 % in energy at every clock."""
    school, _ = learned
    curves, _ = school.knowledge.curves(school.graph.kinds)
    for kind, curve in curves.items():
        base = school.base_s(Computation(*kind, 0))
        watts = 300 if kind.instruction == "forward" else 350
        assert curve.clock_mhz[0] <= rung(OPEN_AT_START - 1)
        for clock, seconds, joules in zip(
            curve.clock_mhz, curve.time_s, curve.energy_j, strict=True
        ):
            if clock >= 0.7 * TOP:
                x = TOP / clock
                true_j = base * time_ratio(x) * watts * school.power(x)
                assert seconds == pytest.approx(base * time_ratio(x), rel=0.03)
                assert joules == pytest.approx(true_j, rel=0.05)


def test_the_ladder_is_descended_only_while_it_pays() -> None:
    """Energy that keeps falling opens rung after rung; energy that does not shuts them again, and
    nothing below the lowest allowed fraction is ever tried."""
    falling, flat = School(power_falls), School(power_hardly_falls)
    for school in (falling, flat):
        school.learn()
    assert min(falling.tried()) == rung(len(LADDER) - 1) >= 0.5 * TOP
    assert min(flat.tried()) >= rung(OPEN_AT_START)
    late = {c for plan in flat.plans[-2:] for own in plan.clocks for c in own if c is not None}
    assert min(late) > min(falling.tried())


def test_noisier_computations_take_more_trials(learned: tuple[School, int]) -> None:
    """Enough is what errors say, not a count."""
    assert School(noise=0.03).learn() > learned[1]


def test_what_was_remembered_need_not_be_learned_again(learned: tuple[School, int]) -> None:
    """With the snapshot of an earlier run hardly a trial is made."""
    again = School()
    again.knowledge.recall(learned[0].knowledge.snapshot())
    assert again.learn() <= learned[1] // 2


def test_a_job_of_one_stage_learns_within_its_own_budget() -> None:
    """Nothing waits for anything, so every trial costs; a job that allows 5 % has lower clocks
    tried for that, and one that allows nothing has none."""
    for slowdown in (0.05, 0.0):
        school = School(stages=1)
        school.explorer.slowdown = slowdown
        for _ in range(8):
            school.live(school.explorer.next_trial(school.knowledge))
        slowdowns = [m / school.full_s - 1 for m in school.makespans[-8:]]
        assert np.mean(slowdowns) <= slowdown + 0.002
        assert bool(school.tried()) == (slowdown > 0)


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


def test_a_long_iteration_is_weighed_in_part() -> None:
    """Windows are drawn from 192 places a rank without looking at each: the trial has windows on
    every rank, and stays within the budget."""
    school = School(microbatches=96)
    plan = school.explorer.next_trial(school.knowledge)
    assert all(any(own) for own in plan.clocks)
    school.live(plan)
    assert school.makespans[-1] <= school.full_s * (1 + SLOWDOWN)
