"""The guard: three slow iterations in a row because of us are seen, whatever the noise."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perseusd.core.jobs.guard import IN_A_ROW, LIMIT, Breach, Guard
from perseusd.core.savings.samples import Sample

BUDGET = 0.005


def baseline(noise: float, count: int = 5, seed: int = 0) -> Sample:
    rng = random.Random(seed)
    return Sample([4.0 * rng.gauss(1, noise) for _ in range(count)])


def saw(guard: Guard, ours: list[float], others: list[float], noise: float) -> Breach | None:
    """What it says after iterations that lost `ours` to us and `others` to anything else."""
    sample = baseline(noise)
    found = None
    for mine, other in zip(ours, others, strict=True):
        guard.ended(mine, mine + other)
        guard.lasted(mine + other)
        found = found or guard.breach(sample, sample)
    return found


@pytest.mark.parametrize("noise", [0.0001, 0.003, 0.01, 0.05])
def test_iterations_slow_because_of_us_are_seen_at_any_noise(noise: float) -> None:
    """1.1 % lost to our clocks in three iterations that vary by up to 5 %: seen by the third."""
    for seed in range(50):
        rng = random.Random(seed)
        others = [rng.gauss(0, noise) for _ in range(IN_A_ROW)]
        if sum(others) / len(others) < -2 * noise / IN_A_ROW**0.5:
            continue
        assert saw(Guard(BUDGET), [0.011] * IN_A_ROW, others, noise) is Breach.OURS


@pytest.mark.parametrize("noise", [0.003, 0.01, 0.05])
def test_noise_is_no_breach(noise: float) -> None:
    """Three thousand iterations of a plan at its aim; the baseline is five iterations."""
    rng = random.Random(1)
    guard, sample = Guard(BUDGET), baseline(noise, count=40)
    breaches = 0
    for _ in range(3000):
        guard.ended(rng.gauss(0.002, 0.0015), rng.gauss(0.002, noise))
        guard.lasted(rng.gauss(0.002, noise))
        if guard.breach(sample, sample) is not None:
            breaches += 1
            guard.clear()
    assert breaches <= 6


def test_slow_iterations_that_the_curves_do_not_explain_are_seen_too() -> None:
    """Wrong curves say that nothing is lost; the measurement stands beside them."""
    assert saw(Guard(BUDGET), [0.0] * 3, [0.05] * 3, 0.003) is Breach.MEASURED


def test_waiting_that_grows_is_told_from_computing() -> None:
    """Makespans as ever and longer iterations: somebody else."""
    guard, sample = Guard(BUDGET), baseline(0.003)
    for _ in range(IN_A_ROW):
        guard.ended(0.002, 0.002)
        guard.lasted(0.2)
    assert guard.breach(sample, sample) is Breach.WAITING


def test_a_model_that_the_measurement_contradicts_is_not_believed() -> None:
    """A GPU that ignores its clock: the curves say 5 % lost, and iterations are short as ever."""
    assert saw(Guard(BUDGET), [0.05] * 5, [-0.05] * 5, 0.003) is None


def test_one_long_iteration_is_no_breach() -> None:
    """A checkpoint takes an iteration's time twice over; two more as usual: nothing happened."""
    guard, sample = Guard(BUDGET), baseline(0.003)
    for extra in (0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0):
        guard.ended(0.002, 0.002)
        guard.lasted(extra)
        assert guard.breach(sample, sample) is None


def test_a_jobs_own_budget_counts() -> None:
    """A job that allows 5 % is not let go of at 4 %, and is at 6 %."""
    assert saw(Guard(0.05), [0.04] * 3, [0.0] * 3, 0.003) is None
    assert saw(Guard(0.05), [0.06] * 3, [0.0] * 3, 0.003) is Breach.OURS


def test_a_baseline_of_one_iteration_measures_nothing() -> None:
    """With so little to compare with only the curves can tell."""
    sample = Sample([4.0])
    guard = Guard(BUDGET)
    for _ in range(5):
        guard.ended(0.0, 0.5)
        guard.lasted(0.5)
    assert guard.breach(sample, sample) is None
    for _ in range(3):
        guard.ended(0.02, 0.5)
    assert guard.breach(sample, sample) is Breach.OURS


@given(st.lists(st.floats(0, 0.1), min_size=IN_A_ROW, max_size=40))
def test_no_more_than_three_in_a_row_whatever_the_losses(losses: list[float]) -> None:
    """With exact curves, the guard speaks before a fourth iteration over the limit, and what it
    does about it clears its memory."""
    guard, sample, run = Guard(BUDGET), baseline(0.001), 0
    for lost in losses:
        guard.ended(lost, lost)
        run = run + 1 if lost > LIMIT else 0
        assert run <= IN_A_ROW
        if guard.breach(sample, sample) is not None:
            guard.clear()
            run = 0


def test_a_baseline_of_a_slower_job_is_no_measure() -> None:
    """Iterations that would have been clearly shorter at full clock than the baseline says: it was
    measured while something was slow, so nothing measured against it is believed any longer."""
    guard = Guard(0.005)
    baseline = Sample([3.60, 3.59, 3.61, 3.60, 3.60])
    guard.ended(0.0, -0.08, -0.12)
    assert guard.breach(baseline, baseline) is None
    guard.ended(0.0, -0.08, -0.12)
    assert guard.breach(baseline, baseline) is Breach.FASTER


def test_an_early_iteration_or_the_noise_of_the_curves_is_no_faster_job() -> None:
    """One iteration alone, or two that are early by less than curves may be off."""
    baseline = Sample([3.60, 3.59, 3.61, 3.60, 3.60])
    for early in ((-0.12, 0.0), (-0.019, -0.019)):
        guard = Guard(0.005)
        for full in early:
            guard.ended(0.0, 0.0, full)
            assert guard.breach(baseline, baseline) is None
