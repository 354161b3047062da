"""Twenty and more disturbances of a held job, and what each may cost, in virtual time.

Each begins at iteration AT, when the job has long been held; those of LEARNING begin while it is
being learned. `disturbed` runs one and counts what matters: the longest run of iterations over the
limit because of lowered clocks, when the job was held again, and the saving that was lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from perseusd.core.settings import Settings
from perseusd.emulation.coordinator import Straggler
from perseusd.emulation.fasttime import Conditions, FastIteration, FastTime, Slow, counted
from perseusd.emulation.fasttime.disturbances import (
    Announcement,
    BatchChange,
    CheckpointPause,
    ClockProcessAway,
    CommunicationChange,
    CounterJump,
    CounterReset,
    CounterStall,
    DataStall,
    Disturbance,
    EvaluationPhase,
    FailedWrite,
    Hang,
    IgnoredClock,
    JobRestart,
    LateEvents,
    LateRank,
    LengthChange,
    LostEvents,
    RankRestart,
    ReorderedEvents,
    SilentRank,
    SlowWrite,
    StuckLow,
)
from perseusd.emulation.workloads import Workload

AT = 40
LEARNING = 9
ITERATIONS = 90

LIMIT = 0.01
"""Slower than this because of us is what must not last."""

MOST_IN_A_ROW = 3

USUAL = range(AT - 10, AT)
"""Iterations whose saving is the usual one."""

Spoil = Callable[[FastTime], None]
"""What is done to a run before it starts, where no disturbance says it."""


@dataclass(frozen=True)
class Case:
    """One disturbance; at: the iteration from which its consequences are counted."""

    name: str
    disturbances: tuple[Disturbance, ...] = ()
    slow: tuple[Slow, ...] = ()
    replicas: int = 1
    at: int = AT
    elsewhere: Straggler | None = None
    """Of another node, and nobody announces it."""
    spoil: Spoil | None = field(default=None, compare=False)


def _remember_wrongly(run: FastTime) -> None:
    """An earlier job of the same signature is remembered whose clocks cost half as much time."""
    conditions = replace(run.conditions, disturbances=(), slow=())
    settings = Settings(remember=True)
    before = FastTime(run.workload, counted, conditions, settings, run.microbatches)
    before.run(30)
    for key, kept in before.shell.memory.items():
        knowledge = kept["knowledge"]
        for group in knowledge["groups"].values():
            group["time"] = [v / 2 for v in group["time"]]
        for kind in knowledge["kinds"]:
            top_s = kind["top_s"]
            kind["clocks"] = {
                clock: [n, top_s + (mean - top_s) / 2, spread]
                for clock, (n, mean, spread) in kind["clocks"].items()
            }
        run.shell.memory[key] = kept


CASES: tuple[Case, ...] = (
    Case("evaluation", (EvaluationPhase(at=AT, iterations=4),)),
    Case("evaluation, counted", (EvaluationPhase(at=AT, iterations=4, counted=True),)),
    Case("checkpoint pause of 20 s", (CheckpointPause(at=AT, seconds=20.0),)),
    Case("larger batch", (BatchChange(at=AT, microbatches=18),)),
    Case("smaller batch", (BatchChange(at=AT, microbatches=8),)),
    Case("longer sequences", (LengthChange(at=AT, factor=1.3),)),
    Case("shorter sequences", (LengthChange(at=AT, factor=0.75),)),
    Case("lost events", (LostEvents(at=AT, until=AT + 3, rank=2, most=2, share=0.2),)),
    Case("reordered events", (ReorderedEvents(at=AT, until=AT + 3, rank=1, most=2, share=0.2),)),
    Case("rank restart", (RankRestart(at=AT, seconds=10.0, rank=1, position=5),)),
    Case("job restart", (JobRestart(at=AT, seconds=20.0, back=5),)),
    Case("silent rank", (SilentRank(at=AT, until=AT + 15, rank=2),)),
    Case("late rank", (LateRank(at=12, rank=1),), at=12),
    Case("rank hangs for 8 s", (Hang(at=AT, seconds=8.0, rank=1, position=7),)),
    Case("GPU ignores its clock", (IgnoredClock(at=AT, rank=0),)),
    Case("GPU ignores clocks while learning", (IgnoredClock(at=3, until=AT, rank=0),), at=3),
    Case("GPU stuck low", (StuckLow(at=AT, until=AT + 30, rank=0, most=None),)),
    Case("a reset is not obeyed at an evaluation", (
        StuckLow(at=AT, rank=0, most=1),
        EvaluationPhase(at=AT, iterations=3),
    )),
    Case("clock writes fail", (FailedWrite(at=AT, rank=1, most=3),)),
    Case("clock writes hang for 6 s", (SlowWrite(at=AT, seconds=6.0, rank=1, most=2),)),
    Case("clock process away for 20 s", (ClockProcessAway(at=AT, seconds=20.0, after_s=0.7),)),
    Case("data loader stalls", (DataStall(at=AT, until=AT + 25, mean_s=0.3, share=0.5),)),
    Case("slower communication", (CommunicationChange(at=AT, factor=20.0),)),
    Case("events late by 50 ms", (LateEvents(at=AT, seconds=0.05),)),
    Case("false announcement", (Announcement(at=AT, factor=1.3),)),
    Case("counter reset", (CounterReset(at=AT, rank=1),)),
    Case("counter jumps back", (CounterJump(at=AT, rank=1, joules=-5000.0),)),
    Case("counter stalls", (CounterStall(at=AT, rank=1, seconds=10.0, lost=True),)),
    Case("a slow rank while learning", slow=(Slow(rank=0, factor=1.4, start=LEARNING),),
         at=LEARNING),
    Case("a lowered rank turns slow", slow=(Slow(rank=0, factor=1.3, start=AT, end=AT + 25),)),
    Case("every rank in turn slow", slow=tuple(
        Slow(rank=r, factor=1.25, start=AT + 6 * r, end=AT + 6 * r + 3) for r in range(4)
    )),
    Case("another node's straggler", elsewhere=Straggler(1.2, AT, AT + 25)),
    Case("replica slow from the beginning", slow=(Slow(replica=1, factor=1.3, start=0, end=AT),),
         replicas=2),
    Case("longer sequences while learning", (LengthChange(at=LEARNING, factor=1.3),), at=LEARNING),
    Case("wrong curves on disk", spoil=_remember_wrongly, at=7),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """longest: iterations in a row over the limit because of us. worst: the slowest one's share.

    mean: mean slowdown from the disturbance on. held_after: iterations until the job was held for
    good, None if never; lost: of the saving that there was before, in iterations' worth.
    """

    name: str
    longest: int
    worst: float
    mean: float
    held_after: int | None
    left: int
    usual: float | None
    lost: float | None


def disturbed(
    case: Case,
    workload: Workload,
    noise: float,
    seed: int,
    microbatches: int | None = None,
    iterations: int = ITERATIONS,
) -> tuple[Outcome, FastTime]:
    """Runs it."""
    conditions = Conditions(
        noise=noise, seed=seed, disturbances=case.disturbances, slow=case.slow,
        replicas=case.replicas, straggler=case.elsewhere, announced=False,
    )  # fmt: skip
    run = FastTime(workload, counted, conditions, Settings(remember=True), microbatches)
    if case.spoil is not None:
        case.spoil(run)
    return outcome(case, run.run(iterations)), run


def outcome(case: Case, done: Sequence[FastIteration]) -> Outcome:
    after = [i for i in done if i.number >= case.at]
    usual = [_saving(done[n]) for n in USUAL if done[n].state == "hold"]
    before = sum(usual) / len(usual) if usual and case.at >= AT else None
    unheld = [i.number for i in after if i.state != "hold"]
    held = None if after[-1].state != "hold" else (unheld[-1] + 1 - case.at if unheld else 0)
    return Outcome(
        name=case.name,
        longest=longest_run(done),
        worst=max(i.slowdown for i in done),
        mean=sum(i.slowdown for i in after) / len(after),
        held_after=held,
        left=len(unheld),
        usual=before,
        lost=sum(1 - _saving(i) / before for i in after) if before else None,
    )


def longest_run(done: Sequence[FastIteration], limit: float = LIMIT) -> int:
    """Most iterations in a row that were slower than the limit because of lowered clocks."""
    longest = now = 0
    for iteration in done:
        now = now + 1 if iteration.slowdown > limit else 0
        longest = max(longest, now)
    return longest


def _saving(iteration: FastIteration) -> float:
    return 1 - iteration.energy_j / iteration.full_energy_j
