"""News of stragglers in the log: onset and end always, changes when they are clear and seldom."""

from __future__ import annotations

from dataclasses import replace

import pytest

from perseusd.core.stragglers import Straggler
from perseusd.daemon.straggler_log import EVERY_S, StragglerLog

SLOW = Straggler(0, 2, 2, 1.4, 12, None, False, "compute")


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(clock: Clock) -> StragglerLog:
    return StragglerLog(clock)


def test_onset_and_end_are_logged_whenever_they_come(log: StragglerLog) -> None:
    """Though they follow each other at once; the next spell is another one."""
    assert log.wants("me:a", SLOW)
    assert log.wants("me:a", replace(SLOW, until_iteration=14))
    assert log.wants("me:a", replace(SLOW, since_iteration=20))
    assert log.wants("me:a", replace(SLOW, since_iteration=30))  # the end before was not told
    assert len(log._logged) == 1


def test_a_change_is_logged_if_it_is_clear_and_not_too_soon(log: StragglerLog, clock) -> None:
    """Against what the log says, so that a slow drift is told too."""
    log.wants("me:a", SLOW)
    assert not log.wants("me:a", replace(SLOW, factor=2.0))
    clock.now_s += EVERY_S
    assert not log.wants("me:a", replace(SLOW, factor=1.5))
    assert log.wants("me:a", replace(SLOW, factor=1.8))
    assert not log.wants("me:a", replace(SLOW, factor=1.3))
    clock.now_s += EVERY_S
    assert log.wants("me:a", replace(SLOW, factor=1.3))


def test_each_straggler_has_lines_of_its_own(log: StragglerLog) -> None:
    """Another job, stage, or the link beside it; a job that ended leaves nothing behind."""
    others = [("me:b", SLOW), ("me:a", replace(SLOW, stage=1, rank=1))]
    others.append(("me:a", replace(SLOW, cause="communication")))
    assert all(log.wants(*other) for other in [("me:a", SLOW), *others])
    log.forget("me:a")
    assert [who[0] for who in log._logged] == ["me:b"]
