"""The interval of a comparison holds the truth as often as it says, whatever the noise is like."""

from __future__ import annotations

import math

import numpy as np
import pytest

from perseusd.core.savings.contrast import FEWEST, Contrast, _student, _tail

FULL, GAP, HELD = 5, 8, 100
SIGMA = 0.003
LOWER = 0.15


def noise(kind: str, random: np.random.Generator, count: int) -> np.ndarray:
    own = random.normal(0, SIGMA, count)
    match kind:
        case "autocorrelated":
            for i in range(1, count):
                own[i] = 0.8 * own[i - 1] + 0.6 * own[i]
        case "drifting":
            own += np.linspace(0, random.choice([-0.008, 0.008]), count)
        case "wandering":
            own += np.cumsum(random.normal(0, 0.1 * SIGMA, count))
        case "warming":
            own -= 2 * SIGMA * np.exp(-np.arange(count) / 25)
        case "quickening":
            own += 4 * SIGMA * np.exp(-np.arange(count) / 40)
        case "boundaries":
            own += np.diff(random.normal(0, SIGMA, count + 1))
    return own


def compared(
    kind: str, seed: int, *, references: tuple[int, ...] = (), held: int = HELD
) -> Contrast:
    """FULL iterations at full clock, GAP others, then held ones, a few of them at full clock."""
    random = np.random.default_rng(seed)
    contrast = Contrast(boundaries=kind == "boundaries")
    logs = noise(kind, random, FULL + GAP + held)
    for i in [*range(FULL), *range(FULL + GAP, FULL + GAP + held)]:
        full = i < FULL or i in references
        contrast.add(i, math.exp(logs[i] - (0 if full else LOWER)), held=not full)
    return contrast


def bounds(contrast: Contrast) -> tuple[float, float, float]:
    interval = contrast.interval()
    assert interval is not None
    return interval


@pytest.mark.parametrize(
    "kind", ["independent", "boundaries", "autocorrelated", "drifting", "wandering"]
)
def test_the_interval_covers_the_truth_about_95_times_in_100(kind: str) -> None:
    """Sixty jobs each: within what chance does to 95 %. That a job may have settled widens it, yet
    not beyond 1.6 times what would have held 95 % of the errors."""
    covered, errors, halves = 0, [], []
    for seed in range(60):
        value, low, high = bounds(compared(kind, seed))
        covered += low <= LOWER <= high
        errors.append(abs(value - LOWER))
        halves.append((high - low) / 2)
    assert covered / 60 >= 0.88
    assert np.median(halves) < 1.6 * np.quantile(errors, 0.95)


def test_iterations_at_full_clock_narrow_it() -> None:
    """Most of what is not known is the full clock's mean: five more of them, spread over time."""
    windows = tuple(range(FULL + GAP, FULL + GAP + HELD, 20))
    widths = []
    for references in ((), windows):
        found = [bounds(compared("independent", s, references=references)) for s in range(30)]
        widths.append(np.median([high - low for _, low, high in found]))
    assert widths[1] < 0.8 * widths[0]


@pytest.mark.parametrize("kind", ["warming", "quickening"])
def test_a_baseline_at_which_a_job_had_not_settled_is_not_taken_for_full_clock(kind: str) -> None:
    """It starts two or four sigmas off, slower or faster than later on: the truth is in the
    interval about as often as it says, and the mean error below a third of the baseline's own."""
    covered, errors = 0, []
    for seed in range(60):
        value, low, high = bounds(compared(kind, seed))
        covered += low <= LOWER <= high
        errors.append(value - LOWER)
    off = (2 if kind == "warming" else 4) * SIGMA
    assert covered / 60 >= 0.85
    assert abs(np.mean(errors)) < 0.3 * off


def test_a_strong_start_is_carried_back_by_no_wrong_factor() -> None:
    """Eight sigmas off, decaying over 50 iterations, which is none of the times on the grid: two
    hundred held iterations tell it so well that a wrong time would be surely wrong."""
    covered, errors = 0, []
    for seed in range(40):
        random, contrast = np.random.default_rng(seed), Contrast()
        for i in [*range(FULL), *range(FULL + GAP, FULL + GAP + 200)]:
            mean = 8 * SIGMA * math.exp(-i / 50) - (0 if i < FULL else LOWER)
            contrast.add(i, math.exp(random.normal(mean, SIGMA)), held=i >= FULL)
        value, low, high = bounds(contrast)
        covered += low <= LOWER <= high
        errors.append(value - LOWER)
    assert covered / 40 >= 0.85
    assert abs(np.mean(errors)) < 0.25 * SIGMA


def test_what_settles_before_holding_is_told_by_later_references() -> None:
    """Ten sigmas off and over within a few iterations: held ones show nothing of it, three
    references do."""
    for seed in range(10):
        random = np.random.default_rng(seed)
        contrast = Contrast()
        for i in [*range(FULL), *range(20, 120)]:
            full = i < FULL or i in (40, 70, 100)
            off = 10 * SIGMA * math.exp(-i / 4)
            value = random.normal(off - (0 if full else LOWER), SIGMA)
            contrast.add(i, math.exp(value), held=not full)
        value, low, high = bounds(contrast)
        assert low <= LOWER <= high
        assert value == pytest.approx(LOWER, abs=1.5 * SIGMA)


def test_a_job_whose_noise_lasts_has_a_wider_interval() -> None:
    """Though its baseline looks the same."""
    widths = {
        kind: np.median([hi - lo for _, lo, hi in (bounds(compared(kind, s)) for s in range(30))])
        for kind in ("independent", "autocorrelated")
    }
    assert widths["autocorrelated"] > 1.15 * widths["independent"]


def test_plans_of_different_merit_are_averaged() -> None:
    """What is asked for is the mean over all held iterations, whichever plan they were under."""
    contrast, random = Contrast(), np.random.default_rng(5)
    for i in range(FULL):
        contrast.add(i, math.exp(random.normal(0, SIGMA)), held=False)
    for i in range(30, 110):
        if i == 50:
            contrast.replan()
        lower = 0.05 if i < 50 else 0.15
        contrast.add(i, math.exp(random.normal(-lower, SIGMA)), held=True)
    value, low, high = bounds(contrast)
    assert low <= 0.125 <= high
    assert value == pytest.approx(0.125, abs=0.01)


def test_outliers_say_nothing_and_another_level_is_followed() -> None:
    """A stall in one arm is not a difference between the arms; three in a row are no outliers."""
    contrast = compared("independent", 1)
    before = bounds(contrast)
    at = FULL + GAP + HELD
    assert not contrast.add(at, 1.5, held=True)
    assert bounds(contrast) == before
    assert contrast.add(at + 1, math.exp(-LOWER), held=True)
    taken = [contrast.add(at + 2 + i, 1.3 * math.exp(-LOWER), held=True) for i in range(30)]
    assert taken == [False] * 3 + [True] * 27
    value, low, high = bounds(contrast)
    assert low <= LOWER <= high
    assert value == pytest.approx(LOWER, abs=0.02)


def test_too_little_states_nothing() -> None:
    """An interval out of two iterations would be a guess."""
    contrast = Contrast()
    for i in range(FEWEST - 1):
        contrast.add(i, 1.0 + 0.001 * i, held=False)
    for i in range(10, 30):
        contrast.add(i, 0.9 + 0.0001 * (i % 3), held=True)
    assert contrast.interval() is None
    contrast.add(30, 1.0, held=False)
    assert contrast.interval() is not None


def test_the_normal_and_student_tails_are_what_they_are() -> None:
    """Against the library's error function, and against Student's distribution at its 97.5 %."""
    z = np.linspace(0, 8, 400)
    exact = [0.5 * math.erfc(v / math.sqrt(2)) for v in z]
    assert np.abs(_tail(z) - exact).max() < 2e-7
    for freedom, quantile in ((5, 2.5706), (10, 2.2281), (30, 2.0423), (1000, 1.9623)):
        found = _student(np.array([-quantile, 0.0, quantile]), freedom)
        assert found == pytest.approx([0.025, 0.5, 0.975], abs=5e-4)


def test_an_interval_is_stated_once_and_anew_when_more_is_seen() -> None:
    """Asked again it is the same object; an iteration, an outlier or another plan makes another."""
    contrast = compared("independent", 1)
    first = contrast.interval()
    assert contrast.interval() is first
    assert contrast.interval(0.5) != first
    contrast.replan()
    contrast.add(FULL + GAP + HELD, math.exp(0.001 - LOWER), held=True)
    assert contrast.interval() != first
