"""What is counted, and that none of it grows with what others send."""

from __future__ import annotations

import json

import pytest

from perseusd.clock.protocol import ResultCode
from perseusd.core.actions import JobEnded, Notice
from perseusd.core.jobs.states import State
from perseusd.core.jobs.why import WhyCode
from perseusd.core.savings.samples import Estimate
from perseusd.core.stragglers import Straggler
from perseusd.daemon import counters
from perseusd.daemon.counters import Counters, Events, Histogram, Jobs, Plans


def straggler(since: int, until: int | None = None, cause: str | None = "thermal") -> Straggler:
    return Straggler(0, 1, 1, 1.3, since, until, False, cause)


def test_a_histogram_counts_up_to_each_bound() -> None:
    """A value on a bound belongs to it; what lies above all of them is only in the count."""
    made = Histogram((0.1, 0.2, 0.5))
    for value in (0.05, 0.1, 0.15, 0.5, 7.0):
        made.add(value)
    told = made.as_json()
    assert told["buckets"] == [[0.1, 2], [0.2, 3], [0.5, 4]]
    assert (told["count"], told["sum"]) == (5, pytest.approx(7.8))


def test_gaps_in_a_clients_numbers_are_lost_events(helpers) -> None:
    """Each client's own; a hello begins anew, and a goodbye tells of what is missing before it."""
    events = Events()
    for number in (1, 2, 5):
        events.heard("a", helpers.start(number))
        events.heard("b", helpers.end(number + 100, 1))
    assert events.lost == 4
    events.heard("a", helpers.hello())
    events.heard("a", helpers.start(50))
    events.heard("a", helpers.goodbye(53))
    assert events.lost == 6
    assert events.received == {"stage_start": 4, "stage_end": 3, "hello": 1, "goodbye": 1}


def test_clients_that_never_say_goodbye_take_no_more_room(helpers) -> None:
    """Those that came first are followed anew: no event counts as lost for it."""
    events = Events()
    for number in range(counters.FOLLOWED + 10):
        events.heard(f"client {number}", helpers.start(1))
    events.heard("client 0", helpers.start(9))
    assert events.lost == 0
    assert len(events._numbers) == counters.FOLLOWED


def test_plans_that_are_never_answered_take_no_more_room() -> None:
    """An answer counts whether or not its request is still known; only known ones have a time."""
    plans = Plans()
    for number in range(counters.AWAITED + 5):
        plans.request(number)
    plans.answered(0, made=True)
    plans.answered(counters.AWAITED, made=False)
    assert (plans.asked, plans.made, plans.failed) == (counters.AWAITED + 5, 1, 1)
    assert plans.duration.as_json()["count"] == 1


def test_releases_are_counted_by_their_reason() -> None:
    """In words the reason names ranks and numbers; it is counted by its code."""
    jobs = Jobs()
    for why in ("rank 3 has ended", "rank 4 has ended", "iterations took longer than allowed", "?"):
        jobs.notice(Notice("me:job", f"hold → release: {why}", state=State.RELEASE, why=why))
    jobs.notice(Notice("me:job", "release → baseline", state=State.BASELINE))
    assert jobs.releases == {"rank_gone": 2, "too_slow": 1, "other": 1}
    assert jobs.entered == {State.RELEASE: 4, State.BASELINE: 1}


def test_a_straggler_counts_once_however_its_factor_changes() -> None:
    """Again only when it is over and another begins, or when its job has ended."""
    jobs = Jobs()
    for seen in (straggler(5), straggler(5), straggler(5, 9), straggler(20, cause=None)):
        jobs.notice(Notice("me:job", "", seen))
    assert jobs.stragglers == {"thermal": 1, "unknown": 1}
    jobs.end(JobEnded("me:job", 30))
    jobs.notice(Notice("me:job", "", straggler(20)))
    assert jobs.stragglers == {"thermal": 2, "unknown": 1}
    assert len(jobs._straggling) == 1


def test_energy_saved_is_of_jobs_that_ended_and_of_those_that_run() -> None:
    """Independent errors add as squares; a job of which nothing was measured counts for nothing."""
    counted = Counters()
    counted.jobs.end(JobEnded("me:a", 9, Estimate(100.0, 97.0, 103.0)))
    counted.jobs.end(JobEnded("me:b", 9))
    told = counted.as_json([Estimate(-20.0, -24.0, -16.0), None])
    assert told["energy_saved_j"] == 80.0
    assert (told["energy_saved_j_low"], told["energy_saved_j_high"]) == (75.0, 85.0)
    assert told["jobs_ended"] == 2


def test_nothing_counted_yet_is_json_with_every_code() -> None:
    """A metric that appears with its first event has no increase for it, so zeros are told."""
    told = json.loads(json.dumps(Counters().as_json(), allow_nan=False))
    assert told["clock_writes"] == {code.name.lower(): 0 for code in ResultCode}
    assert set(told["states"]) == {"baseline", "learn", "hold", "release"}
    assert set(told["releases"]) == set(WhyCode)
    assert told["energy_saved_j_low"] is None
    assert told["turn_s"]["count"] == 0
