"""What the watch is told of one iteration, and what it says of a straggler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from perseusd.core.model import Computation


@dataclass(frozen=True, slots=True)
class Observation:
    """One replica's iteration as the watch sees it.

    number: the iteration's number, common to all replicas; may jump or start again.
    computations: each computation with the seconds it took, or would have taken at full clock (the
        caller removes what our own lowered clock did). Empty where only `time_s` is known.
    lags: (rank before, rank after, instruction after) → seconds from the predecessor's end to the
        start of the computation that waited for it: communication.
    time_s: the whole iteration, start to start, where known.
    uncertain: ranks whose clock correction is not yet trusted; not judged this time.
    reasons: rank → NVML clock reasons active during the iteration, lower case ("sw_thermal",
        "hw_thermal", "sw_power_cap", "power_brake", "hw_slowdown").
    """

    replica: int
    number: int
    computations: Sequence[tuple[Computation, float]]
    lags: Mapping[tuple[int, int, str], float] = field(default_factory=dict)
    time_s: float | None = None
    uncertain: frozenset[int] = frozenset()
    reasons: Mapping[int, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Straggler:
    """Who was slow, how much, since when, and why.

    replica, stage, rank: null where it is not known (iteration times alone), and stage and rank
        where a whole replica of several stages is slow. A slow link is named by its lower rank.
    factor: how many times as long as without it; for a link, what the iteration grew by if
        nothing hid it.
    until_iteration: the last slow iteration; null while it lasts.
    transient: it has not lasted more than TRANSIENT iterations (so far).
    cause: "compute", "communication", "thermal", "power_cap", "power_brake",
        "hardware_slowdown", "replica", "iteration" or "announced".
    """

    replica: int | None
    stage: int | None
    rank: int | None
    factor: float
    since_iteration: int
    until_iteration: int | None
    transient: bool
    cause: str | None
