"""What is known of a job's computations, and that nothing is planned on what is not."""

from __future__ import annotations

import json

import numpy as np
import pytest

from perseusd.core.energy.attribution import Activities, Column
from perseusd.core.learned.knowledge import MOST_CLOCKS, MOST_JOINED, GpuFacts, Knowledge
from perseusd.core.model import Kind
from perseusd.errors import PlanningError
from tests.core.energy.activity import Activity, together

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
        self.knowledge.add_activities(self.rank, together(activities))
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
    for i in range(0, 3 * MOST_JOINED, 100):
        rows = [Activity(k, k + 1, FORWARD, 1410) for k in range(i, i + 100)]
        knowledge.add_activities(0, together(rows))
        assert len(knowledge._joined.get(0, ())) < MOST_JOINED
    nothing = np.zeros(0, dtype=np.int64)
    knowledge.add_activities(0, Activities(nothing, (), nothing))
    assert knowledge.powers()[0] == {}


def test_what_learning_puts_off_changes_nothing() -> None:
    """Whether it is worked on bit by bit, or only when somebody asks: the same is known."""
    worked_on, asked = Lived(), Lived()
    for i in range(100):
        for lived in (worked_on, asked):
            lived.iterate(1410 if i % 2 else 1200, 400.0)
        worked_on.knowledge.work_on()
    assert not worked_on.knowledge._unread
    assert len(asked.knowledge._unread) > 50
    assert worked_on.knowledge.powers() == asked.knowledge.powers()
    assert worked_on.knowledge.ledgers[0].sensing == asked.knowledge.ledgers[0].sensing


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


class Pair:
    """Two GPUs of one model that run forwards at three clocks; the second hardly ever waits."""

    def __init__(self, iterations: int, waits_ms: tuple[float, float] = (40.0, 0.2)) -> None:
        self.lived = [Lived(0), Lived(1)]
        self.lived[1].knowledge = self.lived[0].knowledge
        self.knowledge = self.lived[0].knowledge
        for i in range(iterations):
            for lived, wait_ms in zip(self.lived, waits_ms, strict=True):
                clock = (1410, 1410, 1200, 1065)[i % 4]
                milliseconds = {1410: 600.0, 1200: 660.0, 1065: 720.0}[clock]
                lived.iterate(clock, milliseconds, wait_ms)


def test_a_rank_that_hardly_waits_takes_the_others_blocking_power() -> None:
    """Fractions of a millisecond of waiting say nothing of its power; what its like draw does."""
    blocking = Pair(40).knowledge.blocking_power()
    assert blocking[0] == pytest.approx(80, rel=0.05)
    assert blocking[1] == pytest.approx(blocking[0], rel=0.08)


def test_curves_are_as_uncertain_as_they_say() -> None:
    """Times and energies lie within three stated standard errors of the truth, and those shrink as
    more is seen; what was never explored is stated as far less certain."""
    truth = {1410: (0.6, 180.0), 1200: (0.66, 0.66 * 230), 1065: (0.72, 0.72 * 190)}
    widest = []
    for iterations in (16, 120):
        pair = Pair(iterations)
        kinds = [Kind(r, 0, "forward") for r in range(2)]
        curves, _ = pair.knowledge.curves(kinds)
        errors = pair.knowledge.uncertainty(kinds)
        for kind, curve in curves.items():
            for i, clock in enumerate(curve.clock_mhz):
                assert errors[kind].time[i] > 0
                if clock in truth:
                    seconds, joules = truth[clock]
                    off = (curve.time_s[i] / seconds - 1, curve.energy_j[i] / joules - 1)
                    assert abs(off[0]) <= 3 * errors[kind].time[i] + 0.001
                    assert abs(off[1]) <= 3 * errors[kind].energy[i] + 0.002
        widest.append(max(float(e.energy.max()) for e in errors.values()))
        x = np.array([1.3, 1.9])
        near, far = pair.knowledge.time_model().error(kinds[0], x)
        assert far > 3 * near
    assert widest[1] < widest[0]


def test_what_was_learned_outlives_the_job() -> None:
    """Through JSON into a new job's knowledge: its curves, its powers and how far they reach,
    though this job has only been measured at the top clock."""
    first = Pair(60).knowledge
    snapshot = json.loads(json.dumps(first.snapshot()))
    later = Pair(0).knowledge
    later.recall(snapshot)
    assert later.time_model().top_s[FORWARD] == pytest.approx(0.6, rel=0.01)
    assert later.powers()[0][Column(FORWARD, 1200)].watts == pytest.approx(230, rel=0.05)
    pair = Pair(0)
    pair.knowledge.recall(snapshot)
    for _ in range(4):
        for lived in pair.lived:
            lived.iterate(1410, 600.0, 40.0)
    curve = pair.knowledge.curves([FORWARD])[0][FORWARD]
    assert curve.clock_mhz[0] == 1065
    assert curve.time_s[0] == pytest.approx(0.72, rel=0.02)
    assert curve.energy_j[0] == pytest.approx(0.72 * 190, rel=0.04)
    assert pair.knowledge.explored("A100:forward") == pytest.approx(1410 / 1065)


def test_measurements_soon_outweigh_what_was_remembered() -> None:
    """A remembered curve that is 8 % off at the lowest clock: after six durations there the time is
    within 1.5 %."""
    wrong = Pair(60)
    for clocks in wrong.knowledge.durations.seen.values():
        clocks[1065] = [s * 1.08 for s in clocks[1065]]
    wrong.knowledge.durations.version += 1
    wrong.knowledge.durations._means.clear()
    pair = Pair(0)
    pair.knowledge.recall(wrong.knowledge.snapshot())
    for clock in (1410, 1410, 1410, *[1065] * 6):
        for lived in pair.lived:
            lived.iterate(clock, {1410: 600.0, 1065: 720.0}[clock], 40.0)
    curve = pair.knowledge.curves([FORWARD])[0][FORWARD]
    assert curve.time_s[0] == pytest.approx(0.72, rel=0.015)


@pytest.mark.parametrize(
    "damage",
    [
        {"version": 99},
        {"groups": {"A100:forward": {"reach": "far"}}},
        {"kinds": [{"rank": 0}]},
        {"gpus": None},
    ],
)
def test_a_damaged_snapshot_is_refused(damage: dict[str, object]) -> None:
    """A file on disk may hold anything: an error, and what is known stays as it is."""
    knowledge = Pair(20).knowledge
    snapshot = {**knowledge.snapshot(), **damage}
    before = knowledge.curves([FORWARD])
    with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
        knowledge.recall(snapshot)
    assert knowledge.curves([FORWARD]) == before


def test_a_slow_drift_takes_unused_clocks_along() -> None:
    """A GPU that warms up becomes 2 % slower while only one clock is used: the other clock's time
    follows, four fifths of the way at least."""
    knowledge, random = Knowledge(GPUS), np.random.default_rng(0)
    for clock, seconds in ((1410, 0.05), (1065, 0.06)) * 30:
        knowledge.durations.add(FORWARD, clock, seconds * random.lognormal(0, 0.003))
    for i in range(1200):
        slower = 1 + 0.02 * min(i / 800, 1)
        knowledge.durations.add(FORWARD, 1065, 0.06 * slower * random.lognormal(0, 0.003))
    model = knowledge.time_model()
    assert 0.05 * 1.016 < model.top_s[FORWARD] < 0.05 * 1.022
    there = model.top_s[FORWARD] * float(model.ratio(FORWARD, 1410 / 1065))
    assert there == pytest.approx(0.06 * 1.02, rel=0.003)
