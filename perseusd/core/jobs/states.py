"""The states of a job and what moves it between them, in one table.

    baseline ──measured──▶ learn ──planned──▶ hold
       ▲                     │                  │
       └──────clear────── release ◀──trouble────┘

A job leaves baseline only when every rank is present and its order is understood. Trouble is
anything not understood (a rank lost or silent, an unknown order, iterations slower than allowed):
full clocks at once, and from there the way back leads through baseline.
"""

from __future__ import annotations

from enum import StrEnum

from perseusd.errors import PerseusError


class State(StrEnum):
    """Where a job is."""

    BASELINE = "baseline"
    LEARN = "learn"
    HOLD = "hold"
    RELEASE = "release"


class Signal(StrEnum):
    """What can move a job from one state to another."""

    MEASURED = "measured"
    """The baseline is known well enough."""
    PLANNED = "planned"
    """The curves are known and a plan is there."""
    TROUBLE = "trouble"
    """Something is not understood, or training is slower than allowed."""
    CLEAR = "clear"
    """Every rank is present and understood again."""


class IllegalSignalError(PerseusError):
    """This state does not know this signal; nothing was changed."""


TRANSITIONS: dict[tuple[State, Signal], State] = {
    (State.BASELINE, Signal.MEASURED): State.LEARN,
    (State.BASELINE, Signal.TROUBLE): State.RELEASE,
    (State.LEARN, Signal.PLANNED): State.HOLD,
    (State.LEARN, Signal.TROUBLE): State.RELEASE,
    (State.HOLD, Signal.PLANNED): State.HOLD,
    (State.HOLD, Signal.TROUBLE): State.RELEASE,
    (State.RELEASE, Signal.TROUBLE): State.RELEASE,
    (State.RELEASE, Signal.CLEAR): State.BASELINE,
}


def next_state(state: State, signal: Signal) -> State:
    """Raises IllegalSignalError where the table has no entry."""
    try:
        return TRANSITIONS[state, signal]
    except KeyError:
        raise IllegalSignalError(
            f"a job in state {state} cannot take the signal {signal}"
        ) from None


CLOCKS_MAY_BE_LOWERED = frozenset({State.LEARN, State.HOLD})
"""In every other state each clock of the job is full."""
