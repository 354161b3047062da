"""What can happen to a job, its ranks, its GPUs and the daemon's view of them: plain values.

All count iterations as `FastIteration.number` does, from 0; a spell lasts from `at` on until
`until`, exclusive (None: for ever). `rank` is the stage within the replica's pipeline. What each
does is written in the part that it disturbs: `program`, `training`, `wire`, `clocks`, `counter`.

Training itself (iterations change, whatever the daemon does; `full_time_s` has it too):
    EvaluationPhase, CheckpointPause, BatchChange, LengthChange, CommunicationChange, DataStall,
    Hang, RankRestart, JobRestart
What the daemon sees of it:
    LostEvents, ReorderedEvents, LateEvents, SilentRank, LateRank, Announcement
What becomes of its clock writes:
    IgnoredClock, StuckLow, SlowWrite, FailedWrite, ClockProcessAway
Energy counters:
    CounterStall, CounterJump, CounterReset
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar


@dataclass(frozen=True, kw_only=True)
class Disturbance:
    """Begins with iteration `at`."""

    at: int


@dataclass(frozen=True, kw_only=True)
class Spell(Disturbance):
    """Lasts until iteration `until`, exclusive."""

    until: int | None = None

    def active(self, iteration: int) -> bool:
        return self.at <= iteration and (self.until is None or iteration < self.until)


@dataclass(frozen=True, kw_only=True)
class OfRank(Spell):
    """rank: None concerns every rank of the replica; replica: None every replica."""

    rank: int | None = 0
    replica: int | None = 0

    def concerns(self, replica: int, rank: int) -> bool:
        return self.replica in (None, replica) and self.rank in (None, rank)

    def now(self, iteration: int, replica: int, rank: int) -> bool:
        return self.active(iteration) and self.concerns(replica, rank)


# --- training itself ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EvaluationPhase(Disturbance):
    """`iterations` passes of forwards only. microbatches: None has as many as training.

    counted: whether the trainer's iteration number goes on meanwhile, as it does where evaluation
    is taken for iterations; else every pass tells the number of the last training iteration.
    """

    iterations: int
    microbatches: int | None = None
    counted: bool = False

    def active(self, iteration: int) -> bool:
        return self.at <= iteration < self.at + self.iterations


@dataclass(frozen=True, kw_only=True)
class CheckpointPause(Disturbance):
    """Before iteration `at` everybody waits."""

    seconds: float


@dataclass(frozen=True, kw_only=True)
class BatchChange(Spell):
    """Another number of microbatches."""

    microbatches: int


@dataclass(frozen=True, kw_only=True)
class LengthChange(Spell):
    """Longer or shorter sequences: every computation takes `factor` times as long."""

    factor: float


@dataclass(frozen=True, kw_only=True)
class CommunicationChange(Spell):
    """From one stage's end to its neighbour's start it takes `factor` times as long."""

    factor: float


@dataclass(frozen=True, kw_only=True)
class DataStall(OfRank):
    """The first computation waits for data, in this share of iterations, exponentially long."""

    mean_s: float
    share: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Hang(Disturbance):
    """A rank stops before the computation at `position` for some seconds, and all wait for it."""

    seconds: float
    rank: int = 0
    replica: int = 0
    position: int = 0


@dataclass(frozen=True, kw_only=True)
class RankRestart(Hang):
    """As a hang, but the process dies, and after these seconds another one says hello."""


@dataclass(frozen=True, kw_only=True)
class JobRestart(Disturbance):
    """Before iteration `at` all processes end; after some seconds others say hello.

    back: so many iterations before the last one does the trainer's number start again.
    """

    seconds: float
    back: int = 0


# --- what the daemon sees -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LostEvents(OfRank):
    """Per iteration, of the events after the first `skip`, each is lost with this probability, but
    no more than `most` (None: any number)."""

    share: float = 1.0
    most: int | None = 1
    skip: int = 0


@dataclass(frozen=True, kw_only=True)
class ReorderedEvents(OfRank):
    """As lost events, but each arrives after the one that follows it."""

    share: float = 1.0
    most: int | None = 1
    skip: int = 0


@dataclass(frozen=True, kw_only=True)
class LateEvents(OfRank):
    """Events reach the daemon so much after their stamps, in order."""

    seconds: float = 0.02
    rank: int | None = None
    replica: int | None = None


@dataclass(frozen=True, kw_only=True)
class SilentRank(OfRank):
    """Its events stop, its process lives and training goes on."""


@dataclass(frozen=True, kw_only=True)
class LateRank(Disturbance):
    """This rank says hello only when iteration `at` begins; until then nothing is heard of it."""

    rank: int = 0
    replica: int = 0


@dataclass(frozen=True, kw_only=True)
class Announcement(Disturbance):
    """An operator says that another replica is slower by this factor; None: no longer."""

    factor: float | None
    replica: int = 0


# --- what becomes of clock writes ---------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class IgnoredClock(OfRank):
    """Writes succeed and the GPU stays at full clock."""


@dataclass(frozen=True, kw_only=True)
class OfWrites(OfRank):
    """Befalls the next writes. most: so many in all, None: all."""

    most: int | None = 1


@dataclass(frozen=True, kw_only=True)
class StuckLow(OfWrites):
    """Resets succeed and the GPU keeps its lowered clock."""


@dataclass(frozen=True, kw_only=True)
class SlowWrite(OfWrites):
    """A driver call takes `seconds`; other GPUs' calls are not held up."""

    seconds: float


@dataclass(frozen=True, kw_only=True)
class FailedWrite(OfWrites):
    """The driver refuses: the clock stays, or, where it was to be locked, goes back to full."""


@dataclass(frozen=True, kw_only=True)
class ClockProcessAway(Disturbance):
    """The clock process goes, which puts all clocks back, and is there again after some seconds.

    after_s: it goes so long after the iteration's start.
    """

    seconds: float
    after_s: float = 0.0


# --- energy counters ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CounterFault(Disturbance):
    """Happens `after_s` into the iteration, to one rank's GPU."""

    rank: int = 0
    replica: int = 0
    after_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class CounterStall(CounterFault):
    """It stands still for some seconds. lost: what was drawn meanwhile is never counted."""

    seconds: float
    lost: bool = False


@dataclass(frozen=True, kw_only=True)
class CounterJump(CounterFault):
    """From now on it shows so many joules more, or, below 0, goes backwards once."""

    joules: float


@dataclass(frozen=True, kw_only=True)
class CounterReset(CounterFault):
    """It starts again from 0."""


Kind = TypeVar("Kind", bound=Disturbance)


def of(kind: type[Kind], disturbances: Iterable[Disturbance]) -> list[Kind]:
    """Those of one kind, kinds derived from it included."""
    return [each for each in disturbances if isinstance(each, kind)]
