"""Feedback brings iterations to the aim and never far beyond it."""

from __future__ import annotations

import random

import pytest

from perseusd.core.jobs.hold import (
    FEWEST_ITERATIONS,
    LEAST_COMMAND,
    MOST_COMMAND,
    HoldControl,
)
from perseusd.core.savings.samples import Sample

BUDGET = 0.005


def noisy(mean: float, count: int, noise: float = 0.001, seed: int = 0) -> Sample:
    rng = random.Random(seed)
    return Sample([rng.gauss(mean, noise * mean) for _ in range(count)])


BASELINE = noisy(4.0, 8)


def run(control: HoldControl, offset: float, iterations: int, noise: float = 0.001) -> float:
    """Iterations that take `offset` more than commanded; the last ten's mean slowdown."""
    rng = random.Random(1)
    seen = []
    for _ in range(iterations):
        slowdown = control.command + offset
        seen.append(slowdown)
        control.iteration(BASELINE.mean * (1 + slowdown) * rng.gauss(1, noise))
        if control.wants_plan(BASELINE):
            control.start_plan()
    return sum(seen[-10:]) / 10


@pytest.mark.parametrize("offset", [-0.004, -0.001, 0.0, 0.002, 0.006])
def test_iterations_are_brought_to_the_aim(offset: float) -> None:
    """Curves are wrong by some tenths of a per cent either way: within 80 iterations the mean is
    near the aim and within the budget."""
    control = HoldControl(BUDGET)
    slowdown = run(control, offset, 80)
    assert slowdown == pytest.approx(control.aim, abs=0.0015)
    assert slowdown <= BUDGET


def test_few_iterations_and_noise_change_nothing() -> None:
    """A correction costs an iteration of change, so it waits for evidence."""
    control = HoldControl(BUDGET)
    for _ in range(FEWEST_ITERATIONS - 1):
        control.iteration(BASELINE.mean * 1.004)
        assert not control.wants_plan(BASELINE)
    control = HoldControl(BUDGET)
    rng = random.Random(2)
    for _ in range(FEWEST_ITERATIONS):
        control.iteration(BASELINE.mean * (1 + control.aim) * rng.gauss(1, 0.02))
    assert not control.wants_plan(BASELINE)


def test_plans_become_rarer_and_what_is_far_off_is_still_corrected_soon() -> None:
    """Noise alone asks for a plan now and then, and ever more rarely; half a per cent too slow is
    corrected within two dozen iterations, whenever it begins."""
    control, rng = HoldControl(BUDGET), random.Random(3)
    asked = []
    for number in range(1000):
        slowdown = control.command + (0.005 if number >= 900 else 0.0)
        control.iteration(BASELINE.mean * (1 + slowdown) * rng.gauss(1, 0.003))
        if control.wants_plan(BASELINE):
            asked.append(number)
            control.start_plan()
    assert sum(number < 100 for number in asked) <= 6
    assert sum(100 <= number < 900 for number in asked) <= 800 // 48
    assert min(number for number in asked if number >= 900) <= 924


def test_a_job_that_became_faster_is_not_slowed_to_its_old_baseline() -> None:
    """Iterations 20 % below the baseline for hours: the deadline moves by the budget's double at
    most, instead of step by step to 20 %."""
    control = HoldControl(BUDGET)
    for _ in range(500):
        control.iteration(BASELINE.mean * 0.8)
        if control.wants_plan(BASELINE):
            control.start_plan()
        assert control.command <= MOST_COMMAND * BUDGET


def test_iterations_of_another_plan_do_not_count() -> None:
    """What the plan before did is not corrected twice."""
    control = HoldControl(BUDGET)
    for _ in range(10):
        control.iteration(BASELINE.mean * 1.05)
    control.start_plan()
    assert not control.wants_plan(BASELINE)


def test_a_job_that_became_faster_is_noticed_and_one_within_noise_is_not() -> None:
    """No plan makes iterations faster than full clock: 3 % below the baseline, six times, is a
    changed job; 0.5 % below is noise."""
    control = HoldControl(BUDGET)
    for _ in range(FEWEST_ITERATIONS):
        assert not control.outgrown(BASELINE)
        control.iteration(BASELINE.mean * 0.97)
    assert control.outgrown(BASELINE)
    control = HoldControl(BUDGET)
    for _ in range(FEWEST_ITERATIONS):
        control.iteration(BASELINE.mean * 0.995)
    assert not control.outgrown(BASELINE)


def test_after_a_breach_plans_are_tighter_within_bounds() -> None:
    """Every breach takes something off the deadline, down to a limit."""
    control = HoldControl(BUDGET)
    before = control.command
    control.be_cautious()
    assert control.command < before
    assert not control.exhausted
    control.be_cautious(by=0.001)
    for _ in range(10):
        control.be_cautious()
    assert control.command == LEAST_COMMAND
    assert control.exhausted
