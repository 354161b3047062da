"""The closed loop in virtual time: the daemon's core against emulated GPUs, over whole runs.

The planner stops by a clock that counts how often it is read, so every machine gets the same plans.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

import pytest

from perseusd.core.settings import Settings
from perseusd.emulation.coordinator import SYNCHRONISATION_NS, Straggler
from perseusd.emulation.fasttime import Conditions, FastIteration, FastTime, counted
from perseusd.emulation.fasttime.disturbances import (
    Announcement,
    CommunicationChange,
    LengthChange,
)
from perseusd.emulation.workloads import Workload, load_workload


def by_state(done: Sequence[FastIteration], state: str) -> list[FastIteration]:
    """The first iteration, joined before any state, aside."""
    return [i for i in done[1:] if i.state == state]


def slowdown(of: Sequence[FastIteration], baseline: Sequence[FastIteration]) -> float:
    return mean(i.time_s for i in of) / mean(i.time_s for i in baseline) - 1


def saving(of: Sequence[FastIteration], baseline: Sequence[FastIteration]) -> float:
    return 1 - mean(i.energy_j for i in of) / mean(i.energy_j for i in baseline)


def saved(of: Sequence[FastIteration]) -> float:
    """Of what full clocks would have used for the very same iterations."""
    return 1 - sum(i.energy_j for i in of) / sum(i.full_energy_j for i in of)


@pytest.fixture(scope="module")
def gpt3() -> Workload:
    return load_workload("gpt3-175b", "a100-sxm")


@pytest.mark.parametrize("seed", [0, 1])
def test_gpt3_is_learned_soon_and_then_saves_its_tenth(gpt3: Workload, seed: int) -> None:
    """The first issue's promise at 1 % noise, by the emulated truth: learning within 30 iterations
    at ≤ 1 % mean slowdown, then ≥ 10 % less energy at ≤ 0.5 % longer iterations, in bounded writes,
    never let go of; and the core's own intervals hold that truth."""
    run = FastTime(gpt3, counted, Conditions(noise=0.01, seed=seed), microbatches=12)
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
    done = FastTime(workload, counted, Conditions(noise=0.01, seed=0)).run(45)
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
    run = FastTime(gpt3, counted, conditions, microbatches=12)
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
    done = FastTime(gpt3, counted, Conditions(seed=0), settings, microbatches=4).run(20)
    assert sum(i.writes for i in done) == 0
    assert {i.state for i in done[1:]} == {"baseline"}


def test_the_same_seed_gives_the_same_run(gpt3: Workload) -> None:
    """So that a decision can be studied; another seed gives another run."""
    first, second, other = (
        FastTime(gpt3, counted, Conditions(seed=seed), microbatches=4).run(14) for seed in (3, 3, 4)
    )
    assert first == second
    assert first != other


@pytest.mark.parametrize("factor", [0.8, 1.3])
def test_a_job_that_changes_is_learned_anew(gpt3: Workload, factor: float) -> None:
    """Another sequence length in hold: only a few iterations are slow because of us, and then it is
    held again, within the budget of what full clocks take now."""
    conditions = Conditions(seed=0, disturbances=(LengthChange(at=30, factor=factor),))
    done = FastTime(gpt3, counted, conditions, microbatches=6).run(90)
    assert sum(i.slowdown > 0.02 for i in done[30:]) <= 6
    held = done[-10:]
    assert {i.state for i in held} == {"hold"}
    assert mean(i.slowdown for i in held) <= 0.006
    assert saved(held) >= 0.10


def test_a_straggler_that_is_none_is_not_believed(gpt3: Workload) -> None:
    """Announced 1.3 and nobody is slow: after some iterations that were never waited for, the job
    takes its usual time again."""
    conditions = Conditions(seed=0, disturbances=(Announcement(at=25, factor=1.3),))
    done = FastTime(gpt3, counted, conditions, microbatches=6).run(60)
    assert max(i.slowdown for i in done[26:40]) > 0.2  # it was believed at first
    assert mean(i.slowdown for i in done[50:]) <= 0.006


def test_iterations_too_short_for_clock_writes_are_left_alone(gpt3: Workload) -> None:
    """40 times shorter: no clock is ever lowered, and the reason is told."""
    shorter = LengthChange(at=0, factor=1 / 40), CommunicationChange(at=0, factor=1 / 40)
    conditions = Conditions(seed=0, disturbances=shorter)
    run = FastTime(gpt3, counted, conditions, microbatches=6)
    done = run.run(60)
    assert sum(i.writes for i in done) == 0
    assert "too short" in run.job.reason


def test_longer_sequences_are_saved_on_as_soon_as_they_are_known() -> None:
    """All computations take 1.3 times as long from one iteration on: the same plan's time would be
    too short, and the next plan, from the same curves grown, saves as much as the one before."""
    workload = load_workload("bert-1.3b", "a100-pcie")
    longer = LengthChange(at=30, factor=1.3)
    run = FastTime(workload, counted, Conditions(seed=1, disturbances=(longer,)), microbatches=8)
    done = run.run(48)

    def saved(iterations: Sequence[FastIteration]) -> float:
        return 1 - sum(i.energy_j for i in iterations) / sum(i.full_energy_j for i in iterations)

    assert saved(done[24:30]) > 0.08
    assert saved(done[38:]) > 0.9 * saved(done[24:30])
    assert sum(i.slowdown for i in done[38:]) / 10 < 0.005
