"""Random workloads are such that planning them is worth it, and unlike any formula."""

from __future__ import annotations

import numpy as np
import pytest

from perseusd.emulation.random_workloads import ITERATION_S, MOST_MICROBATCHES, random_workload

SEEDS = range(60)
DRAWN = [random_workload(seed) for seed in SEEDS]


def test_a_seed_always_gives_the_same_job() -> None:
    """And another one another job."""
    assert random_workload(3) == random_workload(3)
    assert random_workload(3).curves != random_workload(4).curves


def test_their_shapes_are_those_of_training_jobs() -> None:
    """2 to 8 stages, backward 1.5 to 2.5 times as long as forward, iterations of 2 to 6 s, stages
    up to 40 % uneven; every such range is used."""
    for w in DRAWN:
        assert 2 <= w.stages <= 8
        assert 4 <= w.microbatches <= MOST_MICROBATCHES
        assert ITERATION_S[0] * 0.99 <= w.full_clock_time_s() <= ITERATION_S[1] * 1.01
        forward = [w.curves[s, "forward"].time_s[-1] for s in range(w.stages)]
        backward = [w.curves[s, "backward"].time_s[-1] for s in range(w.stages)]
        assert max(forward) <= 1.4 * min(forward)
        for f, b in zip(forward, backward, strict=True):
            assert 1.499 <= b / f <= 2.501
    assert {w.stages for w in DRAWN} == set(range(2, 9))
    assert len({w.gpu for w in DRAWN}) == 3


def test_computing_never_gets_slower_with_the_clock_and_draws_more_than_waiting() -> None:
    """At every supported clock."""
    for w in DRAWN:
        for curve in w.curves.values():
            assert np.all(np.diff(curve.time_s) <= 0)
            watts = np.array(curve.energy_j) / np.array(curve.time_s)
            assert watts.min() > w.blocking_power_w


def test_least_energy_lies_inside_the_range_for_most_kinds() -> None:
    """Above half the highest clock and below 95 % of it: for nine of ten; there a computation takes
    at least a tenth less energy, for four of five."""
    inside, worth, kinds = 0, 0, 0
    for w in DRAWN:
        clocks = np.array(w.clocks_mhz) / w.clocks_mhz[-1]
        usable = clocks >= 0.5
        for curve in w.curves.values():
            energy = np.array(curve.energy_j)[usable]
            least = int(np.argmin(energy))
            inside += least > 0 and clocks[usable][least] < 0.95
            worth += energy[least] <= 0.9 * energy[-1]
            kinds += 1
    assert inside >= 0.9 * kinds
    assert worth >= 0.8 * kinds


def test_no_two_parameter_formula_fits_their_times() -> None:
    """Kinks and wiggles: the best a + b/f misses most kinds somewhere by over 1 %, and none by so
    much that it were no curve of a GPU."""
    misses = []
    for w in DRAWN:
        x = w.clocks_mhz[-1] / np.array(w.clocks_mhz, dtype=float)
        usable = x <= 2
        design = np.column_stack([np.ones(usable.sum()), x[usable]])
        for curve in w.curves.values():
            time = np.array(curve.time_s)[usable]
            fit, *_ = np.linalg.lstsq(design / time[:, None], np.ones(len(time)), rcond=None)
            misses.append(np.abs(design @ fit / time - 1).max())
    assert np.median(misses) >= 0.01
    assert max(misses) <= 0.3


def test_some_meet_their_power_limit() -> None:
    """There the highest clocks change nothing."""
    capped = sum(
        any(curve.time_s[-1] == curve.time_s[-4] for curve in w.curves.values()) for w in DRAWN
    )
    assert 0.1 * len(DRAWN) <= capped <= 0.6 * len(DRAWN)


@pytest.mark.parametrize("seed", [0, 7])
def test_they_are_pipelines_that_can_run(seed: int) -> None:
    """1F1B of as many ranks as stages, with every kind's curve at every supported clock."""
    w = random_workload(seed)
    assert w.pipeline().ranks == w.stages
    assert {len(c.time_s) for c in w.curves.values()} == {len(w.clocks_mhz)}
