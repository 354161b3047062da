"""The closed loop in virtual time: the daemon's core against emulated GPUs, over whole runs.

The planner stops by a clock that counts how often it is read, so every machine gets the same plans.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from statistics import mean

import pytest

from perseusd.core.model import PlanResult, Problem
from perseusd.core.planner import solve
from perseusd.core.settings import Settings
from perseusd.emulation.coordinator import SYNCHRONISATION_NS, Straggler
from perseusd.emulation.fasttime import Conditions, FastIteration, FastTime
from perseusd.emulation.workloads import Workload, load_workload

READING_S = 0.3
"""What the planner's clock advances by at each look: about half a second's work on one core."""


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
