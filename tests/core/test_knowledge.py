"""What is known of a job's computations, and that nothing is planned on what is not."""

from __future__ import annotations

import numpy as np
import pytest

from perseusd.core.attribution import Activity, Column, Power
from perseusd.core.knowledge import MOST_CLOCKS, MOST_JOINED, GpuFacts, Knowledge
from perseusd.core.model import Kind
from perseusd.errors import PlanningError

MS = 1_000_000
CLOCKS = tuple(range(210, 1411, 15))
GPUS = {r: GpuFacts(f"GPU-{r}", "A100", CLOCKS) for r in range(2)}
FORWARD = Kind(0, 0, "forward")
WATTS = {1410: 300.0, 1200: 230.0, 1065: 190.0, 0: 80.0}


class Lived:
    """Iterations of one forward at a clock and a wait; counters tick every 50 ms."""

    def __init__(self, rank: int = 0) -> None:
        self.knowledge = Knowledge(GPUS)
        self.rank, self.now, self.polled = rank, 10**12, 10**12
        self.edges, self.joules = [self.now], [0.0]
        self.random = np.random.default_rng(rank)

    def iterate(self, clock: int, run_ms: float, wait_ms: float = 20.0) -> None:
        activities = []
        kind = Kind(self.rank, 0, "forward")
        run_ms *= self.random.lognormal(0, 0.01)
        for what, at, length in ((kind, clock, run_ms), (None, 0, wait_ms)):
            until = self.now + int(length * MS)
            activities.append(Activity(self.now, until, what, at))
            self.edges.append(until)
            self.joules.append(self.joules[-1] + WATTS[at] * (until - self.now) * 1e-9)
            self.now = until
            while self.polled <= until:
                ticked = self.polled // (50 * MS) * 50 * MS
                seen = float(np.interp(ticked, self.edges[-9:], self.joules[-9:]))
                self.knowledge.poll_counter(self.rank, self.polled, seen)
                self.polled += 7 * MS
        self.knowledge.add_activities(self.rank, activities)
        self.knowledge.durations.add(kind, clock, run_ms * 1e-3)


def test_iterations_shorter_than_a_few_ticks_still_teach_powers() -> None:
    """A 120 ms iteration holds two ticks of the counter: iterations are joined until there are
    enough, else the job would have no powers for ever."""
    lived = Lived()
    for i in range(200):
        lived.iterate(1410 if i % 2 else 1200, 100.0)
    (powers,) = lived.knowledge.powers().values()
    assert powers[Column(FORWARD, 1410)].watts == pytest.approx(300, rel=0.05)
    assert powers[Column(FORWARD, 1200)].watts == pytest.approx(230, rel=0.05)


def test_iterations_that_do_not_follow_each_other_are_not_joined() -> None:
    """Between two episodes anything may have happened."""
    lived = Lived()
    lived.iterate(1410, 100.0)
    lived.now += 10**9
    lived.iterate(1410, 100.0)
    (joined,) = lived.knowledge._joined.values()
    assert len(joined) == 2


def test_without_ticks_memory_stays_bounded() -> None:
    """A counter that does not move for days: what waits for it is dropped in time."""
    knowledge = Knowledge(GPUS)
    for i in range(3 * MOST_JOINED):
        knowledge.add_activities(0, [Activity(i, i + 1, FORWARD, 1410)])
        assert len(knowledge._joined.get(0, ())) < MOST_JOINED
    knowledge.add_activities(0, [])
    assert knowledge.powers()[0] == {}


def test_curves_reach_as_far_as_was_explored() -> None:
    """Clocks are supported ones, ascending, at most MOST_CLOCKS, from the lowest tried to the top;
    time and energy are those that were lived, within 4 %."""
    lived = Lived()
    for _ in range(40):
        for clock, milliseconds in ((1410, 600.0), (1200, 660.0), (1065, 720.0)):
            lived.iterate(clock, milliseconds, 100.0)
    curves, blocking = lived.knowledge.curves([FORWARD])
    curve = curves[FORWARD]
    assert set(curve.clock_mhz) <= set(CLOCKS)
    assert list(curve.clock_mhz) == sorted(curve.clock_mhz)
    assert len(curve.clock_mhz) <= MOST_CLOCKS
    assert curve.clock_mhz[-1] == 1410
    assert curve.clock_mhz[0] == 1065
    assert curve.time_s[0] == pytest.approx(0.72, rel=0.01)
    assert curve.time_s[-1] == pytest.approx(0.6, rel=0.01)
    assert curve.energy_j[0] == pytest.approx(0.72 * 190, rel=0.04)
    assert curve.energy_j[-1] == pytest.approx(0.6 * 300, rel=0.04)
    assert blocking[0] == pytest.approx(80, rel=0.1)


def test_a_kind_never_timed_at_full_clock_is_no_ground_for_a_plan() -> None:
    """Zero-length spans, or a clock that could not be put back: refused in words."""
    knowledge = Knowledge(GPUS)
    knowledge.durations.add(FORWARD, 1200, 0.05)
    with pytest.raises(PlanningError, match="forward of stage 0 was never timed at full clock"):
        knowledge.curves([FORWARD])


def test_a_silent_counter_is_no_ground_for_a_plan() -> None:
    """Times alone do not say what is worth slowing; the reason names the GPU."""
    knowledge = Knowledge(GPUS)
    knowledge.durations.add(FORWARD, 1410, 0.05)
    with pytest.raises(PlanningError, match="GPU-0 does not move"):
        knowledge.curves([FORWARD])


def test_a_rank_that_hardly_waits_takes_the_others_blocking_power() -> None:
    """Ten milliseconds of waiting say little of its power; what its like draw says more."""
    powers = {0: {None: Power(80.0, 50.0)}, 1: {None: Power(400.0, 0.01)}}
    found = Knowledge(GPUS).blocking_power(powers)
    assert found[0] == pytest.approx(80, rel=0.02)
    assert found[1] == pytest.approx(80, rel=0.05)
