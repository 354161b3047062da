"""The emulated job: replicas that run iterations and wait for each other at each one's end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

from perseusd.emulation.coordinator import SYNCHRONISATION_NS
from perseusd.emulation.fasttime.conditions import Conditions
from perseusd.emulation.fasttime.disturbances import (
    CheckpointPause,
    CommunicationChange,
    DataStall,
    Hang,
    JobRestart,
    RankRestart,
    of,
)
from perseusd.emulation.fasttime.program import Program, Programs
from perseusd.emulation.fasttime.rank import FastRank
from perseusd.emulation.fasttime.replica import FastReplica, Listener, Turn
from perseusd.emulation.fasttime.virtual import NS, VirtualTime

_AGAIN_NS = 1_000_000
"""From a process's hello to its first computation."""

Stalls = dict[tuple[int, int], tuple[int, Callable[[int], None]]]


class Daemon(Protocol):
    """What processes' beginnings and ends mean to the daemon."""

    def join(self, now: int, rank: FastRank) -> None: ...

    def lose(self, now: int, rank: FastRank) -> None: ...


@dataclass(frozen=True)
class Setting:
    """lag_ns: from a stage's end to its neighbour's start. full_ns: an iteration's longest path at
    full clock, of which another node's straggler takes a multiple."""

    lag_ns: int
    full_ns: int


class Training:
    """begun, ended: called with the time at each iteration's start, and at its synchronised end
    with what it would have lasted with every clock full."""

    def __init__(
        self,
        setting: Setting,
        conditions: Conditions,
        programs: Programs,
        time: VirtualTime,
        daemon: Daemon,
    ) -> None:
        self.start_ns = 0
        self.told = -1
        self.replicas: list[FastReplica] = []
        self.begun: Callable[[int], None]
        self.ended: Callable[[int, int], None]
        self._setting, self._conditions, self._programs = setting, conditions, programs
        self._time, self._daemon = time, daemon
        self._unfinished = 0
        self._back = 0
        self._program: Program
        disturbances = conditions.disturbances
        self._lags = of(CommunicationChange, disturbances)
        self._data = of(DataStall, disturbances)
        self._hangs = of(Hang, disturbances)
        self._pauses = of(CheckpointPause, disturbances)
        self._restarts = of(JobRestart, disturbances)
        self._lengths = [
            Random(f"{conditions.seed} lengths {r}") for r in range(conditions.replicas)
        ]
        self._chance = Random(f"{conditions.seed} training")

    @property
    def evaluation(self) -> bool:
        return self._program.evaluation

    def add(self, ranks: Sequence[FastRank], listener: Listener) -> FastReplica:
        noise = self._conditions.noise
        replica = FastReplica(ranks, noise, self._time, listener, self._replica_done)
        self.replicas.append(replica)
        return replica

    def begin(self, now: int) -> None:
        """The next iteration."""
        self._time.iteration += 1
        iteration = self._time.iteration
        self.start_ns = now
        self._program = self._programs.of(iteration)
        evaluation = self._programs.evaluation(iteration)
        if evaluation is None or evaluation.counted:
            self.told += 1 - self._back
            self._back = 0
        self._unfinished = len(self.replicas)
        self.begun(now)
        for number, replica in enumerate(self.replicas):
            replica.begin(now, self._turn(number, replica))

    def _turn(self, number: int, replica: FastReplica) -> Turn:
        iteration, conditions, program = self._time.iteration, self._conditions, self._program
        stages = range(len(replica.ranks))
        lag_ns = float(self._setting.lag_ns)
        for change in self._lags:
            if change.active(iteration):
                lag_ns *= change.factor
        compute = [conditions.slowdown("compute", iteration, number, r) for r in stages]
        received = [conditions.slowdown("communication", iteration, number, r) for r in stages]
        return Turn(
            program,
            [factor * program.lengths for factor in compute],
            self._drawn_lengths(number, program.microbatches),
            [round(lag_ns * factor) for factor in received],
            self._stalls(number, replica),
        )

    def _drawn_lengths(self, replica: int, microbatches: int) -> list[float]:
        sigma, draw = self._conditions.lengths, self._lengths[replica]
        return [draw.lognormvariate(0, sigma) if sigma else 1.0 for _ in range(microbatches)]

    def _stalls(self, number: int, replica: FastReplica) -> Stalls:
        stalls: Stalls = {}
        for data in self._data:
            for rank in replica.ranks:
                if data.now(self._time.iteration, number, rank.rank) and (
                    self._chance.random() < data.share
                ):
                    wait_ns = self._chance.expovariate(1 / data.mean_s) * NS
                    stalls[rank.rank, 0] = round(wait_ns), lambda _: None
        for hang in self._hangs:
            if hang.at == self._time.iteration and hang.replica == number:
                rank = replica.ranks[hang.rank]
                happens = self._restart(rank, hang)
                stalls[hang.rank, hang.position] = round(hang.seconds * NS), happens
        return stalls

    def _restart(self, rank: FastRank, hang: Hang) -> Callable[[int], None]:
        """What happens to a process that hangs: nothing, or its death and another one's start."""

        def happens(now: int) -> None:
            if isinstance(hang, RankRestart):
                self._daemon.lose(now, rank)
                again = now + max(0, round(hang.seconds * NS) - _AGAIN_NS)
                self._time.at(again, self._daemon.join, rank)

        return happens

    def _replica_done(self, now: int) -> None:
        self._unfinished -= 1
        if not self._unfinished:
            self._synchronise(now)

    def _synchronise(self, now: int) -> None:
        full_end = max(replica.full_end_ns for replica in self.replicas)
        held_ns = self._held_until()
        end = max(now, held_ns) + SYNCHRONISATION_NS
        pause_ns = self._pause_ns(end)
        full_time_ns = max(full_end, held_ns) + SYNCHRONISATION_NS + pause_ns - self.start_ns
        self._time.at(end + pause_ns, self._next, full_time_ns)

    def _next(self, now: int, full_time_ns: int) -> None:
        self.ended(now, full_time_ns)
        self.begin(now)

    def _held_until(self) -> int:
        """When another node's straggler lets this iteration end."""
        straggler = self._conditions.straggler
        if straggler is None or not straggler.active(self._time.iteration):
            return 0
        return self.start_ns + int(straggler.factor * self._setting.full_ns)

    def _pause_ns(self, now: int) -> int:
        """Before the next iteration."""
        coming = self._time.iteration + 1
        pause_s = sum(pause.seconds for pause in self._pauses if pause.at == coming)
        for restart in self._restarts:
            if restart.at == coming:
                pause_s += restart.seconds
                self._restart_all(now, restart)
        return round(pause_s * NS)

    def _restart_all(self, now: int, restart: JobRestart) -> None:
        self._back = restart.back
        again = now + max(0, round(restart.seconds * NS) - _AGAIN_NS)
        for replica in self.replicas:
            for rank in replica.ranks:
                self._time.at(now, self._daemon.lose, rank)
                self._time.at(again, self._daemon.join, rank)
