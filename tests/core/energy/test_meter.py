"""Energy between two moments, read back from a counter that ticks."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perseusd.core.energy.meter import LINE_TICKS, EnergyMeter
from perseusd.core.energy.sensor import KEPT_TICKS

MS = 1_000_000


def ticking(meter: EnergyMeter, watts: float, until_ms: int, from_ms: int = 0) -> None:
    for now in range(from_ms, until_ms, 20):
        meter.poll(now * MS, watts * (now // 50 * 50) * 1e-3)


def test_energy_between_moments_is_interpolated() -> None:
    """200 W over 500 ms, neither end on a tick: 100 J within what a poll is uncertain by."""
    meter = EnergyMeter()
    ticking(meter, 200.0, 2000)
    assert meter.between(613 * MS, 1113 * MS) == pytest.approx(100.0, abs=200 * 0.02)


def test_moments_without_ticks_on_both_sides_are_unknown() -> None:
    """Nothing is extrapolated: neither before the first tick nor after the last."""
    meter = EnergyMeter()
    assert meter.between(0, 1) is None
    ticking(meter, 200.0, 1000)
    assert meter.between(0, 500 * MS) is None
    assert meter.between(500 * MS, 5000 * MS) is None


def test_a_counter_that_went_back_makes_the_jump_unknown() -> None:
    """What lies across a driver reload is not guessed; after it counting goes on."""
    meter = EnergyMeter()
    ticking(meter, 200.0, 1000)
    for now in range(1000, 2000, 20):
        meter.poll(now * MS, 100.0 * (now // 50 * 50 - 1000) * 1e-3)
    assert meter.between(500 * MS, 1500 * MS) is None
    assert meter.between(1400 * MS, 1800 * MS) == pytest.approx(40.0, abs=3)


def test_ticks_are_bounded() -> None:
    """Months of ticks take no more memory than the newest some minutes."""
    meter = EnergyMeter()
    for i in range(3 * KEPT_TICKS):
        meter.poll(i * MS, float(i))
    assert len(meter._counter.ticks) <= KEPT_TICKS
    end_ms = 3 * KEPT_TICKS
    assert meter.between((end_ms - 500) * MS, (end_ms - 10) * MS) == pytest.approx(490, abs=1)


@given(
    lengths_ms=st.lists(st.integers(30, 9000), min_size=1, max_size=40),
    gap_ms=st.integers(0, 400),
)
def test_what_is_forgotten_was_not_needed(lengths_ms: list[int], gap_ms: int) -> None:
    """Times that go forward, each forgotten after it was read: the same joules, and few ticks."""
    kept, forgetting = EnergyMeter(), EnergyMeter()
    starts = list(itertools.accumulate(lengths_ms, initial=1000))
    for meter in (kept, forgetting):
        ticking(meter, 200.0, starts[-1] + 1000)
    for start, length in zip(starts, lengths_ms, strict=False):
        span = start * MS, (start + max(length - gap_ms, 1)) * MS
        assert forgetting.between(*span) == kept.between(*span)
        forgetting.forget(*span)
    assert len(forgetting._counter.ticks) <= 3 * LINE_TICKS + (max(lengths_ms) + 1000) // 50
