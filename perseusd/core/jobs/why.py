"""Codes for the reasons why a job is not being slowed, so that programs need not match words.

The words are made where the reason arises, and may name ranks and numbers; here each is known by a
part of it that does not change. What is not in the table has the code `other`.
"""

from __future__ import annotations

from enum import StrEnum


class WhyCode(StrEnum):
    """In status, `why_code`. New ones may be added; none changes its meaning."""

    TOPOLOGY_UNKNOWN = "topology_unknown"
    RANKS_MISSING = "ranks_missing"
    WAITING = "waiting"
    """For the job's first iterations."""
    NOT_UNDERSTOOD_YET = "not_understood_yet"
    MEASURING = "measuring"
    OBSERVING = "observing"
    GPU_UNKNOWN = "gpu_unknown"
    GPU_SHARED = "gpu_shared"
    HOST_TIMES = "host_times"
    CLOCK_PROCESS = "clock_process"
    WRITE_FAILED = "write_failed"
    TOO_SHORT = "too_short"
    TOO_SLOW = "too_slow"
    """The guard let go: iterations took longer than the budget allows."""
    CHANGED = "changed"
    """The job became another one, such as by a larger batch."""
    SILENT = "silent"
    RANK_GONE = "rank_gone"
    RANK_JOINED = "rank_joined"
    NO_PLAN = "no_plan"
    NOTHING_WAITS = "nothing_waits"
    """There is no slack in it."""
    LITTLE_SLACK = "little_slack"
    """There is some, and nowhere enough to try a lower clock."""
    NOTHING_TRIED = "nothing_tried"
    """Learning ended before a lower clock was in force."""
    GPU_NOT_SEEN = "gpu_not_seen"
    """A rank's process was not seen on the GPU that it names."""
    GPU_USED_BY_OTHERS = "gpu_used_by_others"
    GPU_USE_UNKNOWN = "gpu_use_unknown"
    """Who uses one of its GPUs cannot be told."""
    GPU_STUCK = "gpu_stuck"
    """A driver call of one of its GPUs does not return."""
    GPU_FAILED = "gpu_failed"
    """One of its GPUs is lost, or cannot be read."""
    FOREIGN_WRITER = "foreign_writer"
    """Another tool has set the clock of one of its GPUs."""
    RELEASED = "released"
    PAUSED = "paused"
    """Both by an operator."""
    ORDER = "order"
    """Its computations do not recur as they should, or cannot be a pipeline."""
    OTHER = "other"


PARTS: tuple[tuple[str, WhyCode], ...] = (
    # the first that is part of the words counts: causes stand before what follows from them
    ("topology", WhyCode.TOPOLOGY_UNKNOWN),
    ("whether as tensor-parallel group or as replicas", WhyCode.TOPOLOGY_UNKNOWN),
    ("did not say its stage", WhyCode.TOPOLOGY_UNKNOWN),
    ("has said hello for them", WhyCode.RANKS_MISSING),
    ("waiting for the first iterations", WhyCode.WAITING),
    ("waiting for", WhyCode.RANKS_MISSING),
    ("not understood yet", WhyCode.NOT_UNDERSTOOD_YET),
    ("measuring the baseline", WhyCode.MEASURING),
    ("observe-only", WhyCode.OBSERVING),
    ("did not say which GPU", WhyCode.GPU_UNKNOWN),
    ("use the same GPU", WhyCode.GPU_SHARED),
    ("host times", WhyCode.HOST_TIMES),
    ("perseusd-clock", WhyCode.CLOCK_PROCESS),
    ("could not set", WhyCode.WRITE_FAILED),
    ("was not seen on GPU", WhyCode.GPU_NOT_SEEN),
    ("is used by process", WhyCode.GPU_USED_BY_OTHERS),
    ("what uses GPU", WhyCode.GPU_USE_UNKNOWN),
    ("is stuck", WhyCode.GPU_STUCK),
    ("is lost", WhyCode.GPU_FAILED),
    ("cannot be read", WhyCode.GPU_FAILED),
    ("another tool", WhyCode.FOREIGN_WRITER),
    ("released by an operator", WhyCode.RELEASED),
    ("paused by an operator", WhyCode.PAUSED),
    ("iterations are too short", WhyCode.TOO_SHORT),
    ("longer than allowed", WhyCode.TOO_SLOW),
    ("what iterations wait for took longer", WhyCode.TOO_SLOW),
    ("job has changed", WhyCode.CHANGED),
    ("learned anew", WhyCode.CHANGED),
    ("iterations became shorter", WhyCode.CHANGED),
    ("silent", WhyCode.SILENT),
    ("has ended", WhyCode.RANK_GONE),
    ("goodbye", WhyCode.RANK_GONE),
    ("came back on another connection", WhyCode.RANK_GONE),
    ("joined", WhyCode.RANK_JOINED),
    ("has nothing to wait for", WhyCode.NOTHING_WAITS),
    ("there is no slack", WhyCode.NOTHING_WAITS),
    ("slack enough for a trial", WhyCode.LITTLE_SLACK),
    ("before anything was learned", WhyCode.NOTHING_TRIED),
    ("no plan could be made", WhyCode.NO_PLAN),
    ("came at position", WhyCode.ORDER),
    ("order", WhyCode.ORDER),
)


def code_of(why: str) -> WhyCode | None:
    """None where there is no reason: the job is being slowed."""
    if not why:
        return None
    return next((code for part, code in PARTS if part in why), WhyCode.OTHER)
