"""What stragglers ask of a pipeline: never more time than they take, and no change for noise."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perseusd.core.jobs.reaction import MOST_FALL, Change, Reaction

BASELINE_S, MAKESPAN_S, COMMAND = 1.02, 1.0, 0.002

seen = st.one_of(st.none(), st.floats(0.5, 4.0))
ranks = st.dictionaries(st.integers(0, 3), st.floats(1.03, 3.0), max_size=4)


def deadline_s(reaction: Reaction) -> float:
    """When the pipeline may end: its makespan's."""
    stretch = reaction.stretch(COMMAND, BASELINE_S, MAKESPAN_S)
    return MAKESPAN_S * reaction.inflation + stretch * BASELINE_S


def allowed_s(reaction: Reaction) -> float:
    """Without any other replica's slowness."""
    return MAKESPAN_S * reaction.inflation + COMMAND * BASELINE_S


@given(st.lists(st.tuples(seen, st.floats(0, 0.01)), min_size=1, max_size=30))
def test_no_deadline_is_ever_later_than_the_straggler(
    words: list[tuple[float | None, float]],
) -> None:
    """Whatever is seen in whatever order: below T′ as it is now, or the budget's own deadline."""
    reaction = Reaction()
    for elsewhere_s, noise in words:
        reaction.expect(elsewhere_s, MAKESPAN_S, noise)
        now_s = elsewhere_s if elsewhere_s is not None else 0.0
        assert deadline_s(reaction) <= max(allowed_s(reaction), now_s) + 1e-12


@given(st.lists(st.one_of(st.tuples(seen, st.just(None)), st.tuples(st.just(None), ranks))))
def test_every_change_is_told_and_nothing_changes_untold(
    words: list[tuple[float | None, dict[int, float] | None]],
) -> None:
    """NONE leaves every figure as it was; anything else has another version; SOONER is said
    whenever there is less time, or an own rank's pace has changed."""
    reaction = Reaction()
    for elsewhere_s, slow in words:
        before_s, version, eased = deadline_s(reaction), reaction.version, reaction.eased
        if slow is None:
            change = reaction.expect(elsewhere_s, MAKESPAN_S, 0.001)
        else:
            change = reaction.slowed(slow, max(slow.values(), default=1.0))
            assert change in (Change.NONE, Change.SOONER)
        if change is Change.NONE:
            assert (deadline_s(reaction), reaction.version) == (before_s, version)
            assert reaction.eased == eased
        else:
            assert reaction.version > version
        if slow is None and deadline_s(reaction) < before_s - 1e-12:
            assert change is Change.SOONER


@pytest.mark.parametrize("noise", [0.001, 0.003, 0.01])
@pytest.mark.parametrize("factor", [1.02, 1.021, 1.025, 1.03, 1.1, 1.5])
def test_noise_does_not_make_it_oscillate(factor: float, noise: float) -> None:
    """A straggler as slow as ever, also one at the threshold, seen a thousand times as the mean of
    four iterations: two changes; with 1 % noise and about at the threshold, one in twenty."""
    rng = random.Random(0)
    reaction, changes = Reaction(), 0
    took = [factor] * 4
    for _ in range(1000):
        took = [*took[1:], factor * rng.gauss(1, noise)]
        change = reaction.expect(sum(took) / 4, MAKESPAN_S, noise / 2)
        changes += change is not Change.NONE
    assert changes <= (50 if noise > 0.003 and factor < 1.03 else 2)


def test_a_recovery_is_obeyed_at_once() -> None:
    """Gone, or much less slow: SOONER, and no time is left that is not there."""
    reaction = Reaction()
    assert reaction.expect(1.5, MAKESPAN_S, 0.003) is Change.LATER
    assert reaction.expect(1.2, MAKESPAN_S, 0.003) is Change.SOONER
    assert deadline_s(reaction) < 1.2
    assert reaction.expect(None, MAKESPAN_S, 0.003) is Change.SOONER
    assert not reaction.active
    assert deadline_s(reaction) == allowed_s(reaction)


def test_a_straggler_hardly_slower_than_this_pipeline_is_nothing_to_wait_for() -> None:
    """And so is one that is less slow than this pipeline's own slow rank makes it."""
    reaction = Reaction()
    assert reaction.expect(1.01, MAKESPAN_S, 0.003) is Change.NONE
    reaction.slowed({1: 1.4}, 1.4)
    assert reaction.expect(1.3, MAKESPAN_S, 0.003) is Change.NONE
    assert reaction.expect(1.6, MAKESPAN_S, 0.003) is Change.LATER
    assert MAKESPAN_S * 1.4 < deadline_s(reaction) < 1.6


def test_an_announced_and_a_detected_one_are_both_waited_for() -> None:
    """The slower of both counts; the other one's end changes no deadline."""
    reaction = Reaction()
    reaction.announce(1.3)
    reaction.expect(1.5, MAKESPAN_S, 0.001)
    assert 1.45 < deadline_s(reaction) < 1.5
    reaction.announce(None)
    assert 1.45 < deadline_s(reaction) < 1.5
    reaction.announce(2.0)
    reaction.expect(None, MAKESPAN_S, 0.001)
    assert 1.9 < deadline_s(reaction) < MAKESPAN_S + BASELINE_S


def test_the_guard_is_not_loosened_by_waiting_that_the_baseline_held() -> None:
    """A replica that was slow from the beginning is in the baseline: its iterations are no longer
    than that, and a replica that was not makes them longer by all it takes."""
    reaction = Reaction(others_s=1.5)
    reaction.expect(1.5, MAKESPAN_S, 0.001)
    assert reaction.scale(1.52, MAKESPAN_S) == pytest.approx(1.0)
    fresh = Reaction(others_s=1.0)
    fresh.expect(1.5, MAKESPAN_S, 0.001)
    assert fresh.scale(1.02, MAKESPAN_S) == pytest.approx(1.52 / 1.02)


def test_caution_comes_off_the_deadline() -> None:
    """After plans that ended too late, up to a bound."""
    reaction = Reaction()
    reaction.expect(1.5, MAKESPAN_S, 0.001)
    before_s = deadline_s(reaction)
    reaction.be_cautious(0.01)
    assert deadline_s(reaction) == pytest.approx(before_s - 0.015)
    for _ in range(20):
        reaction.be_cautious(0.01)
    assert deadline_s(reaction) > 1.5 * (1 - 2 * MOST_FALL)
