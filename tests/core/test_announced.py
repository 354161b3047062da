"""An announced straggler: believed as long as it is waited for."""

from __future__ import annotations

import pytest

from perseusd.core.announced import CAUTIONS, LIFETIME_S, UNWAITED, AnnouncedStraggler


@pytest.mark.parametrize("factor", [1.05, 1.2, 2.0])
def test_the_deadline_stays_ahead_of_the_straggler(factor: float) -> None:
    """Almost its time, and never later."""
    straggler = AnnouncedStraggler()
    straggler.announce(factor)
    assert factor * 0.99 <= 1 + straggler.stretch < factor


def test_one_that_is_waited_for_is_believed_for_good() -> None:
    """A wait of 0.4 % every other iteration, for a thousand iterations: nothing changes."""
    straggler = AnnouncedStraggler()
    straggler.announce(1.2)
    stretch = straggler.stretch
    assert not any(straggler.waited(0.004 * 1.2 * (i % 2), 1.0) for i in range(1000))
    assert straggler.believed
    assert straggler.stretch == stretch


def test_one_that_is_never_waited_for_is_doubted_step_by_step() -> None:
    """Each time a tighter plan is called for, and after the tightest it is no longer believed."""
    straggler = AnnouncedStraggler()
    straggler.announce(1.2)
    stretches = [straggler.stretch]
    for _ in CAUTIONS:
        assert straggler.believed
        assert [straggler.waited(0.0, 1.0) for _ in range(UNWAITED)] == [False] * 4 + [True]
        stretches.append(straggler.stretch)
    assert not straggler.believed
    assert stretches[:-1] == sorted(set(stretches), reverse=True)


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
