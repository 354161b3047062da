"""Energy counters in virtual time: what they show of what was drawn."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from perseusd.emulation.fasttime import Conditions
from perseusd.emulation.fasttime.counter import Counter
from perseusd.emulation.fasttime.disturbances import CounterJump, CounterReset, CounterStall
from perseusd.emulation.fasttime.gpu import FastGpu

from .conftest import work

MS = 1_000_000
CLOCKS = tuple(range(210, 1411, 15))


def gpu_with(spans_ms: Sequence[tuple[int, int]]) -> FastGpu:
    """Waits at 100 W, and works at 390 W in these spans."""
    gpu = FastGpu(CLOCKS, 100.0)
    curve = work(1.0)
    for start, end in spans_ms:
        gpu.start(start * MS, curve, 1.0)
        gpu.stop(end * MS)
    return gpu


def test_it_moves_at_its_ticks_only() -> None:
    """Between ticks it shows what had been drawn at the last one; a late one shows that later."""
    gpu = gpu_with([])
    counter = Counter(gpu, Conditions(counter_tick_s=0.1), 20 * MS)
    assert counter.shown(119 * MS) == 0.0
    assert counter.shown(120 * MS) == pytest.approx(10.0)
    assert counter.shown(219 * MS) == pytest.approx(10.0)
    assert counter.moves_ns == 220 * MS
    late = Counter(gpu, Conditions(counter_tick_s=0.1, counter_late_s=0.05), 20 * MS)
    assert late.shown(169 * MS) == 0.0
    assert late.shown(170 * MS) == pytest.approx(10.0)


def test_ticks_that_were_not_read_are_not_lost() -> None:
    """Read rarely, it has counted everything."""
    counter = Counter(gpu_with([(150, 250)]), Conditions(counter_tick_s=0.1), 0)
    assert counter.shown(1000 * MS) == pytest.approx(100 * 0.9 + 39.0)


@pytest.mark.parametrize(("last", "seen_w"), [(True, 390.0), (False, 100.0)])
def test_a_sensor_that_sees_a_quarter_takes_it_for_the_whole(last: bool, seen_w: float) -> None:
    """Work in the last 25 of 100 ms counts for all of them, or for nothing, as the window lies."""
    gpu = gpu_with([(75, 100), (175, 200)])
    conditions = Conditions(counter_tick_s=0.1, counter_window=0.25, counter_window_last=last)
    counter = Counter(gpu, conditions, 0)
    assert counter.shown(100 * MS) == pytest.approx(seen_w * 0.1)
    assert counter.shown(200 * MS) == pytest.approx(seen_w * 0.2)


@pytest.mark.parametrize(("lost", "after_j"), [(False, 50.0), (True, 30.0)])
def test_a_stalled_counter_stands_and_then_goes_on(lost: bool, after_j: float) -> None:
    """With what was drawn meanwhile, or without."""
    counter = Counter(gpu_with([]), Conditions(counter_tick_s=0.1), 0)
    counter.shown(200 * MS)
    counter.fail(200 * MS, CounterStall(at=0, seconds=0.2, lost=lost))
    assert counter.shown(399 * MS) == pytest.approx(20.0)
    assert counter.shown(500 * MS) == pytest.approx(after_j)


def test_a_counter_jumps_goes_back_and_starts_again() -> None:
    """Each from the moment of the fault on, and what is drawn then is counted on."""
    counter = Counter(gpu_with([]), Conditions(counter_tick_s=0.1), 0)
    counter.fail(100 * MS, CounterJump(at=0, joules=1000.0))
    assert counter.shown(100 * MS) == pytest.approx(1010.0)
    counter.fail(150 * MS, CounterJump(at=0, joules=-1005.0))
    assert counter.shown(150 * MS) == pytest.approx(5.0)
    counter.fail(200 * MS, CounterReset(at=0))
    assert counter.shown(200 * MS) == 0.0
    assert counter.shown(300 * MS) == pytest.approx(10.0)
