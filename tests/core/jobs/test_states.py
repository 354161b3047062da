"""The table of states is the whole truth about how a job may move."""

from __future__ import annotations

import itertools

import pytest

from perseusd.core.jobs.states import (
    CLOCKS_MAY_BE_LOWERED,
    TRANSITIONS,
    IllegalSignalError,
    Signal,
    State,
    next_state,
)


@pytest.mark.parametrize(("state", "signal"), list(itertools.product(State, Signal)))
def test_every_pair_moves_as_the_table_says_or_is_refused(state: State, signal: Signal) -> None:
    """What the table names happens; anything else raises, naming both, and changes nothing."""
    before = dict(TRANSITIONS)
    if (state, signal) in TRANSITIONS:
        assert next_state(state, signal) is TRANSITIONS[state, signal]
    else:
        with pytest.raises(IllegalSignalError, match=f"{state.value}.*{signal.value}"):
            next_state(state, signal)
    assert before == TRANSITIONS


@pytest.mark.parametrize("state", list(State))
def test_trouble_is_taken_everywhere_and_leads_to_full_clocks(state: State) -> None:
    """Whatever a job is doing, it can be let go of."""
    assert next_state(state, Signal.TROUBLE) not in CLOCKS_MAY_BE_LOWERED


def test_the_way_to_a_lowered_clock_leads_through_baseline() -> None:
    """Nobody goes from release to lowered clocks without having measured full clock."""
    assert {s for (s, _), to in TRANSITIONS.items() if to in CLOCKS_MAY_BE_LOWERED} == {
        State.BASELINE,
        State.LEARN,
        State.HOLD,
    }
    assert next_state(State.RELEASE, Signal.CLEAR) is State.BASELINE
