"""An announced straggler: believed as long as it is waited for."""

from __future__ import annotations

import pytest

from perseusd.core.jobs.announced import (
    CAUTIONS,
    LIFETIME_S,
    UNWAITED,
    AnnouncedStraggler,
    Word,
)


def announced(factor: float) -> AnnouncedStraggler:
    straggler = AnnouncedStraggler()
    straggler.announce(factor)
    return straggler


@pytest.mark.parametrize("factor", [1.05, 1.2, 2.0])
def test_the_deadline_stays_ahead_of_the_straggler(factor: float) -> None:
    """Almost its time, and never later."""
    assert factor * 0.99 <= 1 + announced(factor).stretch < factor


def test_one_that_is_waited_for_is_believed_for_good() -> None:
    """A wait of 0.4 % every other iteration, for a thousand iterations: nothing changes."""
    straggler = announced(1.2)
    stretch = straggler.stretch
    words = {straggler.waited(0.004 * 1.2 * (i % 2), 1.0, slowed=True) for i in range(1000)}
    assert words == {Word.KEPT}
    assert straggler.in_force
    assert straggler.stretch == stretch


def test_one_that_is_not_waited_for_is_looked_for() -> None:
    """Two slow iterations without waiting, and we look; what still runs under its plan meanwhile
    says nothing; an iteration at the usual plan does."""
    straggler = announced(1.2)
    words = [straggler.waited(0.0, 1.0, slowed=True) for _ in range(UNWAITED)]
    assert words == [Word.KEPT, Word.DOUBTED]
    assert not straggler.in_force
    assert straggler.waited(0.0, 1.0, slowed=True) is Word.KEPT
    assert straggler.waited(0.0, 1.0, slowed=False) is Word.UNTRUE


def test_one_that_is_seen_is_planned_for_with_more_caution() -> None:
    """Noise hid the waiting: each time the plan is tighter, down to the tightest."""
    straggler = announced(1.2)
    stretches = [straggler.stretch]
    for _ in range(4):
        for _ in range(UNWAITED):
            straggler.waited(0.0, 1.0, slowed=True)
        assert straggler.waited(0.19, 1.0, slowed=False) is Word.SEEN
        assert straggler.in_force
        stretches.append(straggler.stretch)
    assert stretches[:3] == sorted(set(stretches), reverse=True)
    assert stretches[-1] == pytest.approx(1.2 * (1 - CAUTIONS[-1]) - 1)


def test_an_iteration_without_its_plan_says_nothing_before_we_look() -> None:
    """It may not have begun yet when it is announced."""
    straggler = announced(1.2)
    assert straggler.waited(0.0, 1.0, slowed=False) is Word.KEPT
    assert straggler.in_force


def test_an_announcement_runs_out_unless_it_is_repeated() -> None:
    """From the first look at it on; one that is repeated starts anew."""
    straggler = AnnouncedStraggler()
    assert not straggler.expired(10**18)
    straggler.announce(1.2)
    start_ns, life_ns = 5 * 10**9, int(LIFETIME_S * 1e9)
    assert not straggler.expired(start_ns)
    assert not straggler.expired(start_ns + life_ns)
    assert straggler.expired(start_ns + life_ns + 1)
    straggler.announce(1.2)
    assert not straggler.expired(start_ns + life_ns + 1)


def test_one_that_is_foretold_begins_then_and_once() -> None:
    """What held before holds until it begins; a later word replaces it."""
    straggler = announced(1.1)
    straggler.foretell(1.3, 1000)
    assert straggler.coming == (1.3, 1000)
    assert straggler.begins(999) is None
    assert straggler.factor == 1.1
    assert straggler.begins(1000) == 1.3
    assert straggler.begins(1001) is None
    straggler.foretell(1.3, 2000)
    straggler.announce(None)
    assert straggler.begins(3000) is None
