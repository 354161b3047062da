"""The closed loop in virtual time: the daemon's core against emulated GPUs, over whole runs.

The planner stops by a clock that counts how often it is read, so every machine gets the same plans.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from statistics import mean

import pytest

from perseusd.core.model import PlanResult, Problem
from perseusd.core.planner import solve
from perseusd.core.settings import Settings
from perseusd.emulation.coordinator import SYNCHRONISATION_NS, Straggler
from perseusd.emulation.fasttime import Conditions, FastIteration, FastTime
from perseusd.emulation.workloads import Workload, load_workload
from perseusd.gpus.physics import WorkCurve

READING_S = 0.003
"""What the planner's clock advances by at each look: about a look's work on one core."""


def planned(problem: Problem) -> PlanResult:
    looks = itertools.count()
    return solve(problem, clock=lambda: next(looks) * READING_S)


def by_state(done: Sequence[FastIteration], state: str) -> list[FastIteration]:
    """The first iteration, joined before any state, aside."""
    return [i for i in done[1:] if i.state == state]


def slowdown(of: Sequence[FastIteration], baseline: Sequence[FastIteration]) -> float:
    return mean(i.time_s for i in of) / mean(i.time_s for i in baseline) - 1


def saving(of: Sequence[FastIteration], baseline: Sequence[FastIteration]) -> float:
    return 1 - mean(i.energy_j for i in of) / mean(i.energy_j for i in baseline)


@pytest.fixture(scope="module")
def gpt3() -> Workload:
    return load_workload("gpt3-175b", "a100-sxm")


@pytest.mark.parametrize("seed", [0, 1])
def test_gpt3_is_learned_soon_and_then_saves_its_tenth(gpt3: Workload, seed: int) -> None:
    """The first issue's promise at 1 % noise, by the emulated truth: learning within 30 iterations
    at ≤ 1 % mean slowdown, then ≥ 10 % less energy at ≤ 0.5 % longer iterations, in bounded writes,
    never let go of; and the core's own intervals hold that truth."""
    run = FastTime(gpt3, planned, Conditions(noise=0.01, seed=seed), microbatches=12)
    done = run.run(60)
    baseline, learn, hold = (by_state(done, s) for s in ("baseline", "learn", "hold"))
    assert hold[0].number <= 30
    assert slowdown(learn, baseline) <= 0.01
    assert saving(hold, baseline) >= 0.10
    assert slowdown(hold, baseline) <= 0.005
    assert (
        mean(i.writes for i in hold) / gpt3.stages <= Settings().max_writes_per_s * hold[0].time_s
    )
    assert len(baseline) + len(learn) + len(hold) == len(done) - 1
    told_saving, told_slowdown = run.job.ledger.saving(), run.job.ledger.slowdown()
    assert told_saving is not None
    assert told_slowdown is not None
    assert told_saving.value == pytest.approx(saving(hold, baseline), abs=0.01)
    assert told_slowdown.value == pytest.approx(slowdown(hold, baseline), abs=0.002)


def test_a_power_capped_workload_of_other_stages_saves_too() -> None:
    """BERT on A40: flat at the top clocks, 1.3 uneven stages, half the writes' time at hand."""
    workload = load_workload("bert-1.3b", "a40")
    done = FastTime(workload, planned, Conditions(noise=0.01, seed=0)).run(45)
    baseline, learn, hold = (by_state(done, s) for s in ("baseline", "learn", "hold"))
    assert hold[0].number <= 30
    assert slowdown(learn, baseline) <= 0.01
    assert saving(hold, baseline) >= 0.15
    assert slowdown(hold, baseline) <= 0.005


def test_a_straggler_is_followed_and_let_go_within_two_iterations(gpt3: Workload) -> None:
    """Announced at iteration 30 and over at 40: two iterations after the onset the energy of an
    iteration has fallen by 8 % against the onset's own, which waits for the straggler at the old
    clocks, and all replicas wait at most 0.5 % for this one; one after the end it takes its usual
    time again."""
    conditions = Conditions(noise=0.01, seed=0, straggler=Straggler(1.2, 30, 40))
    run = FastTime(gpt3, planned, conditions, microbatches=12)
    done = run.run(50)
    usual = [i for i in done if 20 <= i.number < 30]
    onset, meanwhile, after = done[30], done[32:40], done[41:]
    stragglers_s = 1.2 * gpt3.full_clock_time_s(12) + SYNCHRONISATION_NS * 1e-9
    assert {i.state for i in done[20:]} == {"hold"}
    assert max(i.energy_j for i in meanwhile) <= 0.92 * onset.energy_j
    assert stragglers_s * 0.999 <= mean(i.time_s for i in meanwhile) <= stragglers_s * 1.005
    assert max(i.time_s for i in after[:2]) <= max(i.time_s for i in usual) * 1.01
    assert slowdown(after, usual) <= 0.005
    assert saving(after, usual) >= -0.02


def test_observe_mode_touches_nothing(gpt3: Workload) -> None:
    """Not one write, and iterations as without a daemon."""
    settings = Settings(observe=True)
    done = FastTime(gpt3, planned, Conditions(seed=0), settings, microbatches=4).run(20)
    assert sum(i.writes for i in done) == 0
    assert {i.state for i in done[1:]} == {"baseline"}


def test_the_same_seed_gives_the_same_run(gpt3: Workload) -> None:
    """So that a decision can be studied; another seed gives another run."""
    first, second, other = (
        FastTime(gpt3, planned, Conditions(seed=seed), microbatches=4).run(14) for seed in (3, 3, 4)
    )
    assert first == second
    assert first != other


def scaled(run: FastTime, factor: float) -> None:
    """From now on every computation takes `factor` times as long."""
    for rank in run.ranks:
        for name, curve in rank.gpu.curves.items():
            times = tuple(t * factor for t in curve.time_s)
            rank.gpu.curves[name] = WorkCurve(times, tuple(e * factor for e in curve.energy_j))


def changed_at(run: FastTime, iteration: int, change: Callable[[], None]) -> None:
    begin = run._begin

    def begun(now: int) -> None:
        if run.iteration + 1 == iteration:
            change()
        begin(now)

    run._begin = begun  # type: ignore[method-assign]  # a disturbance, from outside


@pytest.mark.parametrize("factor", [0.8, 1.3])
def test_a_job_that_changes_is_learned_anew(gpt3: Workload, factor: float) -> None:
    """Another sequence length in hold: let go within a few iterations, then learned again, and what
    is held then is again within the budget of what full clock takes now."""
    run = FastTime(gpt3, planned, Conditions(noise=0.01, seed=0), microbatches=6)
    changed_at(run, 30, lambda: scaled(run, factor))
    done = run.run(90)
    states = [state.value for state, _ in run.job.states]
    assert states == ["baseline", "learn", "hold", "release", "baseline", "learn", "hold"]
    baseline = [i for i in done[30:] if i.state == "baseline"]
    hold = [i for i in done[60:] if i.state == "hold"]
    assert slowdown(hold, baseline) <= 0.006
    assert saving(hold, baseline) >= 0.10
    slow = [i for i in done[30:] if i.time_s > 1.02 * mean(b.time_s for b in baseline)]
    assert len(slow) <= 6


def test_a_straggler_that_is_none_is_not_believed(gpt3: Workload) -> None:
    """Announced 1.3 and nobody is slow: after some iterations that were never waited for, the job
    takes its usual time again."""
    run = FastTime(gpt3, planned, Conditions(noise=0.01, seed=0), microbatches=6)
    changed_at(run, 25, lambda: run._act(0, run.controller.announce_straggler(run.job.name, 1.3)))
    done = run.run(60)
    usual = mean(i.time_s for i in done[1:6])
    assert max(i.time_s for i in done[26:40]) > 1.2 * usual  # it was believed at first
    assert mean(i.time_s for i in done[50:]) <= 1.006 * usual
    assert run.job.straggler.factor is None


def test_iterations_too_short_for_clock_writes_are_left_alone(gpt3: Workload) -> None:
    """40 times shorter: no clock is ever lowered, and the reason is told."""
    run = FastTime(gpt3, planned, Conditions(noise=0.01, seed=0), microbatches=6)
    scaled(run, 1 / 40)
    run.lag_ns //= 40
    done = run.run(60)
    assert sum(i.writes for i in done) == 0
    assert "too short" in run.job.reason
