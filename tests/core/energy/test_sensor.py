"""When a polled counter ticked, and where nothing may be inferred from it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from perseusd.core.energy.sensor import KEPT_TICKS, CounterTicks, Tick, moments

MS = 1_000_000


def polled(readings: list[tuple[int, float]]) -> CounterTicks:
    """readings: (milliseconds, joules)."""
    counter = CounterTicks()
    for at, joules in readings:
        counter.poll(at * MS, joules)
    return counter


def tick(after_ms: int, by_ms: int, joules: float) -> Tick:
    return Tick(after_ms * MS, by_ms * MS, joules)


def chains(counter: CounterTicks) -> list[int]:
    return [t.chain for t in counter.ticks]


def test_a_tick_lies_between_the_polls_that_saw_it() -> None:
    """Ticks are taken once, by the middle of the polls around them; what lies before is dropped."""
    counter = polled([(0, 5.0), (10, 5.0), (20, 6.0), (30, 6.0), (40, 8.0), (50, 8.0), (60, 9.0)])
    assert counter.ticks == [tick(10, 20, 6.0), tick(30, 40, 8.0), tick(50, 60, 9.0)]
    assert counter.count(20 * MS, 60 * MS) == 2
    assert counter.take(20 * MS, 50 * MS) == [tick(30, 40, 8.0)]
    assert counter.ticks == [tick(50, 60, 9.0)]


def test_a_counter_that_goes_back_starts_another_chain() -> None:
    """A driver reload sets it to zero: nothing is inferred across that, and what was seen before
    stays good."""
    counter = polled([(0, 50.0), (10, 60.0), (20, 1.0), (30, 2.0), (40, 3.0)])
    assert [t.joules for t in counter.ticks] == [60.0, 2.0, 3.0]
    assert chains(counter) == [0, 1, 1]


def test_a_counter_that_jumps_starts_another_chain() -> None:
    """A thousand joules within 20 ms are no GPU's."""
    counter = polled([(10 * i, 3.0 * i + (1000 if i >= 5 else 0)) for i in range(10)])
    assert chains(counter) == [0, 0, 0, 0, 1, 1, 1, 1, 1]


def test_a_counter_that_stalls_starts_another_chain() -> None:
    """Four times its usual interval without a tick, and it ticks on: what that tick covers is not
    known."""
    readings = [(10 * i, float(i if i < 8 else max(i - 6, 7))) for i in range(20)]
    counter = polled(readings)
    assert chains(counter)[:7] == [0] * 7
    assert chains(counter)[7:] == [1] * 6


def test_a_counter_that_becomes_slower_is_followed() -> None:
    """After some intervals its new pace is the usual one: its ticks are one chain again."""
    readings = [(10 * i, float(i if i < 10 else 10 + (i - 10) // 5)) for i in range(300)]
    counter = polled(readings)
    assert len(set(chains(counter)[-10:])) == 1


def test_readings_that_are_no_numbers_are_passed_over() -> None:
    """A driver's nonsense is not a tick, nor does it hide one."""
    counter = polled([(0, 1.0), (10, math.nan), (20, math.inf), (30, 2.0)])
    assert counter.ticks == [tick(0, 30, 2.0)]


def test_ticks_nobody_takes_are_bounded() -> None:
    """A job that is not followed for days must not fill the memory; the newest are kept."""
    counter = polled([(i, float(i)) for i in range(3 * KEPT_TICKS)])
    assert len(counter.ticks) <= KEPT_TICKS
    assert counter.ticks[-1].joules == 3 * KEPT_TICKS - 1


def test_even_ticks_are_timed_better_than_by_polls() -> None:
    """Polls 17 ms apart leave each tick 5 ms uncertain; a line through fifty of them 1 ms."""
    true = 3 + 50.0 * np.arange(50)
    ticks = [
        Tick(int(at // 17 * 17 * MS), int((at // 17 + 1) * 17 * MS), float(i))
        for i, at in enumerate(true)
    ]
    found = moments(ticks, 0) * 1e3
    assert np.abs(found - true).max() < 1.5
    assert np.abs([t.middle_ns * 1e-6 for t in ticks] - true).max() > 6


def test_the_line_is_that_of_least_squares() -> None:
    """Through all ticks' middles, as numpy fits it."""
    at = 20 + 50.0 * np.arange(40)
    jitter = np.random.default_rng(0).uniform(-2, 2, len(at))
    polls = np.round(at + jitter).astype(int).tolist()
    ticks = [tick(poll - 8, poll + 8, float(i)) for i, poll in enumerate(polls)]
    index, middle = np.arange(40), np.array([t.middle_ns for t in ticks]) * 1e-9
    line = np.polyval(np.polyfit(index, middle, 1), index)
    assert moments(ticks, 0) == pytest.approx(line, rel=1e-12)


def test_uneven_ticks_lie_in_the_middle_of_their_polls() -> None:
    """A counter that keeps no pace has no line, and none is imposed."""
    rng = np.random.default_rng(0)
    true = np.cumsum(rng.uniform(20, 120, 40))
    ticks = [Tick(int((at - 5) * MS), int((at + 5) * MS), float(i)) for i, at in enumerate(true)]
    assert moments(ticks, 0) * 1e3 == pytest.approx(true, abs=0.01)
