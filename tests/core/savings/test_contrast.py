"""The interval of a comparison holds the truth as often as it says, whatever the noise is like."""

from __future__ import annotations

import math

import numpy as np
import pytest

from perseusd.core.savings.contrast import FEWEST, Contrast

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
    """Sixty jobs each: within what chance does to 95 %. A job that drifts is not another one:
    five iterations before it say less, and the interval says so."""
    covered = 0
    for seed in range(60):
        _, low, high = bounds(compared(kind, seed))
        covered += low <= LOWER <= high
    assert covered / 60 >= 0.88
    assert covered / 60 <= 0.99 or kind == "drifting"


def test_iterations_at_full_clock_narrow_it() -> None:
    """Most of what is not known is the full clock's mean: five more of them, spread over time."""
    windows = tuple(range(FULL + GAP, FULL + GAP + HELD, 20))
    widths = []
    for references in ((), windows):
        found = [bounds(compared("independent", s, references=references)) for s in range(30)]
        widths.append(np.median([high - low for _, low, high in found]))
    assert widths[1] < 0.8 * widths[0]


def test_a_job_that_wanders_has_a_wider_interval() -> None:
    """Though its baseline looks the same."""
    widths = {
        kind: np.median([hi - lo for _, lo, hi in (bounds(compared(kind, s)) for s in range(30))])
        for kind in ("independent", "wandering")
    }
    assert widths["wandering"] > 1.15 * widths["independent"]


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
