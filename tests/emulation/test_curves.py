from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from perseusd.emulation.curves import falling_times, scaled, work_curve
from perseusd.emulation.tables import Points

CLOCKS = tuple(range(210, 1411, 15))


@st.composite
def measured(draw: st.DrawFn) -> Points:
    """Noisy measurements: times fall with the clock only roughly, power is above blocking."""
    clocks = sorted(draw(st.sets(st.sampled_from(CLOCKS), min_size=1, max_size=20)))
    wobble = st.floats(0.9, 1.1)
    power = st.floats(101.0, 400.0)
    points = []
    for clock in clocks:
        time = draw(wobble) * (0.02 + 40 / clock)
        points.append((clock, time, draw(power) * time))
    return tuple(points)


@given(measured())
def test_times_fall_with_the_clock_whatever_was_measured(points: Points) -> None:
    """Time strictly falls over the measured range and nowhere rises with the clock."""
    times = work_curve(points, CLOCKS, 80.0).time_s
    assert all(a >= b for a, b in itertools.pairwise(times))
    kept = falling_times(points)
    inside = [t for c, t in zip(CLOCKS, times, strict=True) if c <= kept[-1][0]]
    assert all(a > b for a, b in itertools.pairwise(inside))


@given(measured())
def test_the_curve_goes_through_every_point_it_keeps(points: Points) -> None:
    """At a kept point time and energy are the measured ones, not a fit's."""
    curve = work_curve(points, CLOCKS, 80.0)
    for clock, time, energy in falling_times(points):
        i = CLOCKS.index(clock)
        assert abs(curve.time_s[i] - time) <= 1e-9 * time
        assert abs(curve.energy_j[i] - energy) <= 1e-9 * energy


@given(measured())
def test_energy_stays_between_neighbouring_points(points: Points) -> None:
    """Interpolation does not overshoot: no clock is made cheaper than what was measured."""
    kept = falling_times(points)
    curve = work_curve(points, CLOCKS, 80.0)
    for (a, _, low), (b, _, high) in itertools.pairwise(kept):
        for clock, energy in zip(CLOCKS, curve.energy_j, strict=True):
            if a <= clock <= b:
                assert min(low, high) * (1 - 1e-9) <= energy <= max(low, high) * (1 + 1e-9)


def test_below_what_was_measured_a_computation_costs_more() -> None:
    """Time goes as 1/f there and energy rises towards lower clocks, so no plan is drawn there."""
    curve = work_curve(((900, 0.1, 25.0), (1410, 0.07, 32.0)), CLOCKS, 80.0)
    at = CLOCKS.index
    assert abs(curve.time_s[at(450)] - 0.2) < 1e-9
    below = curve.energy_j[: at(900) + 1]
    assert all(a > b for a, b in itertools.pairwise(below))


def test_above_what_was_measured_nothing_changes() -> None:
    """A clock above the highest measured one behaves like it, as at a power cap."""
    curve = work_curve(((900, 0.1, 25.0), (1200, 0.07, 32.0)), CLOCKS, 80.0)
    assert (curve.time_s[-1], curve.energy_j[-1]) == (0.07, 32.0)


def test_scaling_keeps_the_power() -> None:
    """A borrowed curve takes longer and more energy alike."""
    (point,) = scaled(((900, 0.1, 25.0),), 3.0)
    assert point == (900, 0.1 * 3, 75.0)


def test_the_longest_falling_run_is_kept() -> None:
    """One slow outlier is left out, its neighbours are not."""
    points = ((900, 0.4, 1.0), (1000, 0.3, 1.0), (1100, 0.35, 1.0), (1200, 0.2, 1.0))
    assert [clock for clock, _, _ in falling_times(points)] in (
        [900, 1000, 1200],
        [900, 1100, 1200],
    )
