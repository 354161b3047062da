"""Asking the daemon: seldom, one at a time, and what becomes of it is told apart."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from perseusd.errors import DaemonUnreachableError, NotPermittedError, ProtocolError
from perseusd.exporter.source import FRESH_S, Source


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_an_answer_serves_everybody_while_it_is_fresh() -> None:
    """And tells its age; after that the daemon is asked again."""
    clock, asked = Clock(), []
    source = Source(lambda: asked.append(1) or {"schema_version": 1, "n": len(asked)}, clock)
    assert source.snapshot().status["n"] == 1
    clock.now_s += FRESH_S - 0.1
    again = source.snapshot()
    assert (again.status["n"], again.age_s) == (1, pytest.approx(FRESH_S - 0.1))
    clock.now_s += 0.1
    assert source.snapshot().status["n"] == 2
    assert source.snapshot().asked["answered"] == 2


def test_a_flood_of_scrapers_asks_once() -> None:
    """Those that come while the daemon is being asked wait for that answer and take it."""
    asked, release = [], threading.Event()

    def ask():
        asked.append(1)
        release.wait(10)
        return {"schema_version": 1}

    source = Source(ask)
    with ThreadPoolExecutor(20) as pool:
        answers = [pool.submit(source.snapshot) for _ in range(20)]
        release.set()
        assert all(answer.result(10).status for answer in answers)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (DaemonUnreachableError("no such socket"), "unreachable"),
        (NotPermittedError("may not open it"), "not_permitted"),
        (ProtocolError("not JSON"), "invalid"),
    ],
)
def test_what_keeps_the_answer_away_is_counted_and_told(error, result) -> None:
    """A failure is as fresh as an answer: a daemon that is gone is not asked more often."""

    def ask():
        raise error

    source = Source(ask, Clock())
    for _ in range(2):
        told = source.snapshot()
        assert (told.status, told.error) == (None, str(error))
    assert {kind: count for kind, count in told.asked.items() if count} == {result: 1}


def test_a_refusal_is_told_as_what_it_is() -> None:
    """Such as of a user that asks too much: the daemon's own words."""
    refusal = {"ok": False, "code": "too_many_requests", "error": "uid 7 asks too much"}
    told = Source(lambda: refusal, Clock()).snapshot()
    assert told.status is None
    assert told.error == "the daemon refused to answer: uid 7 asks too much"
    assert told.asked["refused"] == 1


def test_another_schema_is_no_answer() -> None:
    """Its fields may mean something else."""
    told = Source(lambda: {"schema_version": 2}, Clock()).snapshot()
    assert told.status is None
    assert "schema_version 2" in told.error
    assert told.asked["invalid"] == 1
