"""Energy of an iteration, whatever way the counter looks at the GPU."""

from __future__ import annotations

import numpy as np
import pytest

from perseusd.core.energy.gauge import Gauge
from perseusd.core.events.tracking import Span, Step

NS = 1_000_000_000
BUSY_W, IDLE_W = 300.0, 80.0
LENGTH_S = 1.003
"""Iterations and ticks drift slowly past each other: the same error for many in a row."""


def spans(number: int, random: np.random.Generator) -> tuple[Span, ...]:
    """Eight computations of 50–90 ms with waiting between them."""
    start = number * LENGTH_S
    ends = [start + 0.12 * i + random.uniform(0.05, 0.09) for i in range(8)]
    return tuple(
        Span(Step(0, "forward", i), round((start + 0.12 * i) * NS), round(end * NS))
        for i, end in enumerate(ends)
    )


def stamps(own: tuple[Span, ...]) -> np.ndarray:
    return np.array([(span.start_ns, span.end_ns) for span in own])


def measured(
    iterations: int, share: float, late_s: float, watts: float = BUSY_W
) -> tuple[list[float], list[float], list[float]]:
    """(true, as counted, as corrected) joules of each iteration but the first and the last."""
    random = np.random.default_rng(1)
    lived = [spans(i, random) for i in range(iterations)]
    edges = np.array([t for own in lived for s in own for t in (s.start_ns, s.end_ns)]) * 1e-9
    spent = np.cumsum(np.diff(edges, prepend=0.0) * (np.arange(len(edges)) % 2))

    def used(at: np.ndarray) -> np.ndarray:
        return np.asarray(IDLE_W * at + (watts - IDLE_W) * np.interp(at, edges, spent))

    ticks = 0.0137 + 0.1 * np.arange(int(edges[-1] * 10))
    counter = np.cumsum((used(ticks) - used(ticks - share * 0.1)) / share)
    gauge, told = Gauge(), 0.0
    true, counted, readings = [], [], []
    for number, own in enumerate(lived):
        for at in np.arange(told, own[-1].end_ns * 1e-9, 0.02):
            shown = np.searchsorted(ticks + late_s, at, side="right") - 1
            gauge.meter.poll(round(at * NS), float(counter[max(shown, 0)]))
            told = at + 0.02
        gauge.computed(stamps(own), follows=number > 0)
        if number < 2:
            continue
        start, end = (lived[n][0].start_ns for n in (number - 1, number))
        reading = gauge.read(start, end, full=True)
        assert reading is not None
        readings.append(reading)
        counted.append(reading.joules)
        true.append(float(np.diff(used(np.array([start, end]) * 1e-9))[0]))
    return true, counted, [gauge.joules(r) for r in readings]


def error(found: list[float], true: list[float]) -> float:
    """Root mean square, relative."""
    return float(np.sqrt(np.mean((np.array(found) / np.array(true) - 1) ** 2)))


def test_what_a_sensor_did_not_see_is_known_from_when_the_gpu_computed() -> None:
    """Of each 100 ms 25 are looked at: several per cent off as counted, a fifth of it corrected."""
    true, counted, corrected = measured(40, 0.25, 0.0)
    assert error(counted, true) > 0.02
    assert error(corrected, true) < 0.2 * error(counted, true)


def test_a_late_counter_is_taken_at_its_time() -> None:
    """60 ms late and looking at 25 ms: nobody told either."""
    true, counted, corrected = measured(40, 0.25, 0.06)
    assert error(corrected, true) < 0.25 * error(counted, true)


def test_a_counter_that_sees_everything_is_read_exactly() -> None:
    """Only where between two ticks an iteration ends is to be corrected, and is."""
    true, counted, corrected = measured(40, 1.0, 0.0)
    assert error(corrected, true) < 0.002
    assert error(corrected, true) <= error(counted, true)


def test_a_gpu_whose_power_does_not_depend_on_computing_is_left_alone() -> None:
    """There is nothing to learn, and nothing is corrected."""
    true, counted, corrected = measured(12, 0.25, 0.0, watts=IDLE_W)
    assert corrected == counted
    assert error(corrected, true) < 1e-3


def test_without_ticks_on_both_sides_nothing_is_known() -> None:
    """Neither before the first poll nor after the last one."""
    gauge = Gauge()
    gauge.computed(stamps(spans(0, np.random.default_rng(0))), follows=False)
    assert gauge.read(0, NS, full=True) is None


@pytest.mark.parametrize("broken", ["fall", "jump", "stall"])
def test_a_broken_counter_is_not_believed(broken: str) -> None:
    """An iteration across it has no energy, rather than a wrong one; later ones have again."""
    gauge, seen_ms = Gauge(), 0
    for at_ms in range(0, 6000, 20):
        if at_ms % 60 == 0 and not (broken == "stall" and 2500 <= at_ms < 3500):
            seen_ms = at_ms
        offset_j = {"fall": -900.0, "jump": 2000.0, "stall": 0.0}[broken] * (at_ms >= 2500)
        gauge.meter.poll(at_ms * 1_000_000, 1000.0 + 0.2 * seen_ms + offset_j)
    ms = 1_000_000
    assert gauge.read(1000 * ms, 2000 * ms, full=True) is not None
    assert gauge.read(2000 * ms, 3600 * ms, full=True) is None
    last = gauge.read(4000 * ms, 5000 * ms, full=True)
    assert last is not None
    assert last.joules == pytest.approx(200.0, rel=0.05)


@pytest.mark.parametrize("seed", range(20))
def test_iterations_that_are_shorter_than_a_tick_is_timed(seed: int) -> None:
    """20 ms each beside polls up to 90 ms apart: what lies before or after all of its ticks, as
    they are timed, is read as counted. All of them together are right."""
    chance = np.random.default_rng(seed)
    gauge, told, read = Gauge(), 0.0, []
    for number in range(100):
        start = 0.02 * number
        while told < start + 0.02:
            told += chance.choice([0.005, 0.05, 0.09])
            gauge.meter.poll(round(told * NS), 20.0 * (told // 0.1))
        busy = Span(Step(0, "iteration", 0), round(start * NS), round((start + 0.012) * NS))
        gauge.computed(stamps((busy,)), follows=number > 0)
        if number > 0:
            reading = gauge.read(round((start - 0.02) * NS), round(start * NS), full=True)
            read += [reading.joules] if reading is not None else []
    assert len(read) > 20
    assert np.mean(read) == pytest.approx(200 * 0.02, rel=0.3)
