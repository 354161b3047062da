"""The stated interval holds the truth as often as it says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from perseusd.core.savings.samples import FEWEST, KEPT, Sample, ratio


@pytest.mark.parametrize(("held", "measured"), [(30, 15), (200, 40)])
def test_the_interval_covers_a_known_ratio_95_times_in_100(held: int, measured: int) -> None:
    """2000 pairs of samples with the means known: covered in 92–97 %, so neither boastful nor
    uselessly wide."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(2000):
        after = rng.normal(86.0, 2.0, held).tolist()
        before = rng.normal(100.0, 1.5, measured).tolist()
        estimate = ratio(after, before)
        assert estimate is not None
        covered += estimate.low <= 0.86 <= estimate.high
    assert 0.92 <= covered / 2000 <= 0.97


def test_too_few_iterations_state_nothing() -> None:
    """An interval out of two values would be a guess."""
    many = [1.0, 1.1, 0.9]
    assert ratio(many[: FEWEST - 1], many) is None
    assert ratio(many, many[: FEWEST - 1]) is None
    assert ratio(many, [0.0] * 5) is None
    assert ratio(many, many) is not None


def test_a_single_value_has_unknown_variance() -> None:
    """It is infinite rather than a division by zero: nobody may lean on it."""
    assert Sample([1.0]).relative_variance_of_mean() == math.inf


def test_samples_are_bounded_and_the_newest_kept() -> None:
    """A run of months takes bounded memory."""
    sample = Sample()
    for i in range(KEPT + 10):
        sample.add(float(i))
    assert len(sample.values) == KEPT
    assert sample.values[-1] == KEPT + 9
