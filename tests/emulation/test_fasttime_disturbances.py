"""Each disturbance in virtual time does what it says, and nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from perseus_hooks.events import StageEnd, StageStart

from perseusd.core.settings import Settings
from perseusd.emulation.fasttime import Conditions, FastIteration, FastTime, counted
from perseusd.emulation.fasttime.disturbances import (
    Announcement,
    BatchChange,
    CheckpointPause,
    ClockProcessAway,
    CommunicationChange,
    CounterJump,
    CounterReset,
    CounterStall,
    DataStall,
    Disturbance,
    EvaluationPhase,
    FailedWrite,
    Hang,
    IgnoredClock,
    JobRestart,
    LateEvents,
    LateRank,
    LengthChange,
    LostEvents,
    RankRestart,
    ReorderedEvents,
    SilentRank,
    SlowWrite,
    StuckLow,
)
from perseusd.emulation.workloads import Workload

Event = StageStart | StageEnd
AT = 3
"""The iteration in which something happens."""

TRAINING = (
    EvaluationPhase(at=AT, iterations=2),
    EvaluationPhase(at=AT, iterations=2, counted=True, microbatches=7),
    CheckpointPause(at=AT, seconds=3.0),
    BatchChange(at=AT, until=6, microbatches=6),
    LengthChange(at=AT, factor=1.4),
    CommunicationChange(at=AT, factor=30.0),
    DataStall(at=AT, mean_s=0.5, share=0.5),
    Hang(at=AT, seconds=2.0, rank=1, position=3),
    RankRestart(at=AT, seconds=2.0, rank=2, position=2),
    JobRestart(at=AT, seconds=4.0, back=2),
)
SEEING = (
    LostEvents(at=AT),
    ReorderedEvents(at=AT),
    LateEvents(at=AT),
    SilentRank(at=AT),
    LateRank(at=AT),
    Announcement(at=AT, factor=1.2),
)
COUNTERS = (
    CounterStall(at=AT, seconds=1.0),
    CounterJump(at=AT, joules=-50.0),
    CounterReset(at=AT),
)


class Seen:
    """An observed run, with every event that reached the daemon."""

    def __init__(self, workload: Workload, *disturbances: Disturbance, iterations: int = 8) -> None:
        conditions = Conditions(noise=0.0, event_delay_s=1e-6, disturbances=disturbances)
        self.run = FastTime(workload, counted, conditions, Settings(observe=True))
        self.events: list[tuple[int, int, str, Event]] = []
        self.lost: list[tuple[str, str]] = []
        heard, lost = self.run.controller.stage_event, self.run.controller.client_lost

        def stage_event(client: str, event: Event, now: int) -> object:
            self.events.append((self.run.time.iteration, now, client, event))
            return heard(client, event, now)

        def client_lost(client: str, why: str) -> object:
            self.lost.append((client, why))
            return lost(client, why)

        self.run.controller.stage_event = stage_event  # type: ignore[method-assign]
        self.run.controller.client_lost = client_lost  # type: ignore[method-assign]
        self.done: Sequence[FastIteration] = self.run.run(iterations)

    def of(self, client: str, iteration: int | None = None) -> list[Event]:
        """What came from a client, in the order of its arrival."""
        return [
            event
            for number, _, sender, event in self.events
            if sender == client and iteration in (None, number)
        ]


@pytest.mark.parametrize("disturbance", TRAINING + SEEING + COUNTERS, ids=repr)
def test_what_is_not_our_doing_is_not_counted_as_ours(
    small: Workload, disturbance: Disturbance
) -> None:
    """No clock is written, so no iteration was slower because of us, whatever happened."""
    for iteration in Seen(small, disturbance).done:
        assert iteration.time_s == pytest.approx(iteration.full_time_s, abs=1e-7)
        assert iteration.energy_j == pytest.approx(iteration.full_energy_j, rel=1e-6)


def test_evaluation_runs_forwards_only(small: Workload) -> None:
    """So many passes; told as iterations or under the last one's number, and then as before."""
    seen = Seen(small, EvaluationPhase(at=AT, iterations=2))
    assert [i.evaluation for i in seen.done[2:6]] == [False, True, True, False]
    assert [i.told for i in seen.done[2:6]] == [2, 2, 2, 3]
    assert _instructions(seen.of("0", AT)) == ["forward"] * 4
    counted_on = Seen(small, EvaluationPhase(at=AT, iterations=2, counted=True, microbatches=7))
    assert [i.told for i in counted_on.done[2:6]] == [2, 3, 4, 5]
    assert _instructions(counted_on.of("0", AT)) == ["forward"] * 7


def test_pauses_and_changes_show_in_iteration_times(small: Workload) -> None:
    """By as much as each says, from its iteration on."""
    usual_s = Seen(small).done[1].time_s
    pause = Seen(small, CheckpointPause(at=AT, seconds=3.0)).done
    assert pause[AT - 1].time_s == pytest.approx(usual_s + 3.0)
    assert pause[AT].time_s == pytest.approx(usual_s)
    batch = Seen(small, BatchChange(at=AT, until=6, microbatches=6)).done
    assert batch[AT].time_s > usual_s * 1.2
    assert batch[6].time_s == pytest.approx(usual_s)
    longer = Seen(small, LengthChange(at=AT, factor=1.4)).done
    assert longer[AT - 1].time_s == pytest.approx(usual_s)
    assert longer[AT].time_s == pytest.approx(1.4 * usual_s, rel=0.02)
    links = Seen(small, CommunicationChange(at=AT, factor=30.0)).done
    assert links[AT].time_s > usual_s + 4 * 29 * small.communication_s
    hang = Seen(small, Hang(at=AT, seconds=2.0, rank=1, position=3)).done
    assert usual_s + 1.5 < hang[AT].time_s <= usual_s + 2.0
    assert hang[AT + 1].time_s == pytest.approx(usual_s)


def test_data_that_comes_late_delays_some_iterations(small: Workload) -> None:
    """About the share that was asked for, by exponential times."""
    usual_s = Seen(small).done[1].time_s
    done = Seen(small, DataStall(at=AT, mean_s=0.5, share=0.5), iterations=60).done
    late_s = [i.time_s - usual_s for i in done[AT:] if i.time_s > usual_s + 1e-6]
    assert 15 <= len(late_s) <= 42
    assert 0.3 <= sum(late_s) / len(late_s) <= 0.8
    assert max(late_s) > 2 * min(late_s)


def test_a_restarted_rank_is_another_client(small: Workload) -> None:
    """The old one is lost in the middle of the iteration, the new one counts its events anew."""
    seen = Seen(small, RankRestart(at=AT, seconds=2.0, rank=2, position=2))
    assert seen.lost == [("2", "has ended")]
    assert len(seen.of("2", AT)) == 4
    assert seen.of("2.1")[0].sequence == 1
    assert len(seen.run.job.roster.members) == 3


def test_a_restarted_job_begins_with_earlier_iterations(small: Workload) -> None:
    """All clients are others, and the trainer's number goes back."""
    seen = Seen(small, JobRestart(at=AT, seconds=4.0, back=2))
    assert sorted(client for client, _ in seen.lost) == ["0", "1", "2"]
    assert [i.told for i in seen.done[:5]] == [0, 1, 2, 1, 2]
    assert {client for _, _, client, _ in seen.events} == {"0", "1", "2", "0.1", "1.1", "2.1"}


def test_events_get_lost(small: Workload) -> None:
    """The one that was asked for, and the next one's number tells it; or each with a chance."""
    seen = Seen(small, LostEvents(at=AT, until=AT + 1, rank=1, skip=4))
    numbers = [event.sequence for event in seen.of("1")]
    assert _missing(numbers) == [AT * 16 + 5]
    assert not _missing([event.sequence for event in seen.of("0")])
    often = Seen(small, LostEvents(at=AT, share=0.1, most=None, rank=None), iterations=30)
    lost = sum(len(_missing([e.sequence for e in often.of(c)])) for c in "012")
    assert 60 <= lost <= 200  # of 27 × 48


def test_events_overtake_each_other(small: Workload) -> None:
    """Two arrive swapped, with their own stamps and numbers."""
    seen = Seen(small, ReorderedEvents(at=AT, until=AT + 1, rank=1, skip=4))
    numbers = [event.sequence for event in seen.of("1")]
    swapped = [b for a, b in itertools.pairwise(numbers) if b < a]
    assert swapped == [AT * 16 + 5]
    assert sorted(numbers) == list(range(1, len(numbers) + 1))


def test_events_arrive_late_and_in_order(small: Workload) -> None:
    """So much after their stamps, for the spell; what follows does not overtake them."""
    seen = Seen(small, LateEvents(at=AT, until=5, seconds=0.02))
    late_ns = [now - event.time_ns for _, now, _, event in seen.events]
    assert late_ns.count(20_000_000) == 2 * 48
    assert sum(ns > 0 for ns in late_ns) <= 2 * 48 + 3
    numbers = [event.sequence for event in seen.of("0")]
    assert numbers == sorted(numbers)


def test_a_silent_rank_trains_on(small: Workload) -> None:
    """Nothing is heard of it, then its events go on with a gap in their numbers."""
    seen = Seen(small, SilentRank(at=AT, until=5, rank=1))
    assert not seen.of("1", AT)
    assert _missing([event.sequence for event in seen.of("1")]) == [*range(AT * 16 + 1, 5 * 16 + 1)]
    assert len(seen.of("0", AT)) >= 15


def test_a_late_rank_says_hello_when_it_comes(small: Workload) -> None:
    """Until then the job waits for it."""
    seen = Seen(small, LateRank(at=AT, rank=2))
    assert min(number for number, _, client, _ in seen.events if client == "2") == AT
    assert seen.of("2")[0].sequence == 1
    assert len(seen.run.job.roster.members) == 3


# --- clock writes -----------------------------------------------------------------------------


def written(workload: Workload, *disturbances: Disturbance) -> tuple[FastTime, list[FastIteration]]:
    """A run in which GPU 1 is asked for 705 MHz before iteration 4, and for full before the 8th."""
    conditions = Conditions(noise=0.0, disturbances=disturbances)
    run = FastTime(workload, counted, conditions, Settings(observe=True))
    run.before(4, lambda: run.shell.clocks.request(_now(run), 1, 705))
    run.before(8, lambda: run.shell.clocks.request(_now(run), 1, None))
    return run, run.run(14)


def test_a_clock_is_lowered_and_put_back(small: Workload) -> None:
    """One write each, asked for once: what is in force already is not written again."""
    run, done = written(small)
    run.before(12, lambda: run.shell.clocks.request(_now(run), 1, None))
    run.run(16)
    assert [(w.uuid, w.clock_mhz, w.iteration) for w in run.writes] == [
        ("GPU-1", 705, 4),
        ("GPU-1", None, 8),
    ]
    assert [i.writes for i in done if i.writes] == [1, 1]
    assert _slow(done) == [4, 5, 6, 7]


def test_an_ignored_clock_stays_full(small: Workload) -> None:
    """The write is reported as done."""
    run, done = written(small, IgnoredClock(at=2, rank=1))
    assert len(run.writes) == 2
    assert _slow(done) == []


@pytest.mark.parametrize(("most", "until"), [(1, 11), (None, 14)])
def test_a_clock_that_is_stuck_stays_low(small: Workload, most: int | None, until: int) -> None:
    """After one reset, so that another one (asked for before iteration 11) helps, or after all."""
    conditions = Conditions(noise=0.0, disturbances=(StuckLow(at=6, rank=1, most=most),))
    run = FastTime(small, counted, conditions, Settings(observe=True))
    for iteration, clock in ((4, 705), (8, None), (10, 900), (11, None)):
        run.before(iteration, lambda c=clock: run.shell.clocks.request(_now(run), 1, c))
    assert _slow(run.run(14)) == [*range(4, until)]


def test_a_write_that_hangs_holds_up_its_own_gpu_only(small: Workload) -> None:
    """It lands when it returns; another GPU's is done meanwhile."""
    usual_s = Seen(small).done[1].time_s
    conditions = Conditions(noise=0.0, disturbances=(SlowWrite(at=2, rank=1, seconds=2 * usual_s),))
    run = FastTime(small, counted, conditions, Settings(observe=True))
    run.before(4, lambda: run.shell.clocks.request(_now(run), 1, 705))
    run.before(4, lambda: run.shell.clocks.request(_now(run), 0, 1305))
    run.run(10)
    assert [(w.uuid, w.iteration) for w in run.writes] == [("GPU-0", 4), ("GPU-1", 5)]


def test_a_write_that_fails_leaves_full_clock(small: Workload) -> None:
    """The job is released, and a reset that fails is tried again until it works."""
    lock, unslowed = written(small, FailedWrite(at=2, rank=1, most=1))
    assert lock.writes == []  # a failed lock has reset the clock already
    assert _slow(unslowed) == []
    reset, done = written(small, FailedWrite(at=6, rank=1, most=2))
    assert [w.clock_mhz for w in reset.writes] == [705, None]
    assert 7 in _slow(done)
    assert done[-1].slowdown == pytest.approx(0, abs=1e-7)


def test_without_the_clock_process_all_clocks_are_full(small: Workload) -> None:
    """They are put back when it goes, nothing is written while it is away, and the controller is
    told both times."""
    usual_s = Seen(small).done[1].time_s
    away = ClockProcessAway(at=6, seconds=3.5 * usual_s)
    conditions = Conditions(noise=0.0, disturbances=(away,))
    run = FastTime(small, counted, conditions, Settings(observe=True))
    told: list[bool] = []
    for iteration in (5, 7, 12):
        run.before(iteration, lambda: told.append(run.controller.writable))
    for iteration in (4, 8, 12):
        run.before(iteration, lambda: run.shell.clocks.request(_now(run), 1, 705))
    done = run.run(14)
    assert told == [True, False, True]
    assert _slow(done) == [4, 5, 12, 13]


def _instructions(events: Sequence[Event]) -> list[str]:
    return [event.instruction for event in events if isinstance(event, StageStart)]


def _missing(numbers: Sequence[int]) -> list[int]:
    return sorted(set(range(1, max(numbers) + 1)) - set(numbers))


def _slow(done: Sequence[FastIteration]) -> list[int]:
    return [i.number for i in done if i.slowdown > 0.01]


def _now(run: FastTime) -> int:
    """The present iteration's start."""
    return run._training.start_ns
