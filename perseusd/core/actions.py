"""What the core asks the shell to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from perseusd.core.jobs.states import State
from perseusd.core.model import Problem
from perseusd.core.savings.samples import Estimate
from perseusd.core.stragglers import Straggler


@dataclass(frozen=True, slots=True)
class SetClock:
    """Lock a GPU's clock; None resets it to full."""

    uuid: str
    clock_mhz: int | None


@dataclass(frozen=True, slots=True)
class RequestPlan:
    """Solve this problem elsewhere and answer with the same ids. A later one replaces it."""

    job: str
    request: int
    problem: Problem


@dataclass(frozen=True, slots=True)
class Refuse:
    """Tell a client why it is not served."""

    client: str
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Forget:
    """A client's process speaks on another connection now."""

    client: str


@dataclass(frozen=True, slots=True)
class Notice:
    """Something an operator may want to read in the log.

    straggler: of whom it tells, if of one. state: that the job has gone to, if it tells of that;
    why: in words.
    """

    job: str
    text: str
    straggler: Straggler | None = None
    state: State | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class JobEnded:
    """Its last process is gone.

    iteration: the latest that began, -1 where none was seen. saved_j: energy saved since its start;
    None where that was not measured.
    """

    job: str
    iteration: int
    saved_j: Estimate | None = None


@dataclass(frozen=True, slots=True)
class Recall:
    """Answer, to `Controller.recalled`, with what was last remembered under this signature."""

    job: str
    signature: str


@dataclass(frozen=True, slots=True)
class Remember:
    """Keep this on disk for the next job of the same signature; a later one replaces it."""

    signature: str
    learned: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Discard:
    """What was remembered under this signature has proved wrong."""

    signature: str


Action = SetClock | RequestPlan | Refuse | Forget | Notice | JobEnded | Recall | Remember | Discard
