"""What an iteration truly took and used, and what full clocks would have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from perseusd.emulation.fasttime.rank import FastRank


@dataclass(frozen=True)
class ReplicaIteration:
    """One replica's part. makespan_s: to its own last computation's end; energy_j: to the end of
    the whole iteration, waiting for other replicas included; full_*: with every clock full."""

    state: str
    makespan_s: float
    energy_j: float
    writes: int
    full_makespan_s: float
    full_energy_j: float


@dataclass(frozen=True)
class FastIteration:
    """One iteration as it truly was, start to start; energies and writes of all replicas together.

    number: counted from 0, passes of an evaluation included. told: what the ranks called it.
    state: in which the daemon held the first replica's job when it began; "none" before there was
        one.
    full_time_s, full_energy_j: what this very iteration would have taken and used with every clock
        full: same noise, same slow ranks, same disturbances.
    """

    number: int
    state: str
    time_s: float
    energy_j: float
    writes: int
    full_time_s: float
    full_energy_j: float
    start_s: float
    told: int
    evaluation: bool
    replicas: tuple[ReplicaIteration, ...]

    @property
    def slowdown(self) -> float:
        """How much longer it took because clocks were lowered, relative."""
        return self.time_s / self.full_time_s - 1


def full_energy_j(ranks: Sequence[FastRank], full_time_s: float) -> float:
    """Of an iteration that lasts so long at full clock: computing, then waiting."""
    return sum(
        rank.shadow.busy_j + (full_time_s - rank.shadow.busy_s) * rank.gpu.blocking_w
        for rank in ranks
    )
