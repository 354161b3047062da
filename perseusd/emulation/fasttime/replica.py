"""One replica's pipeline: runs an iteration, step by step, as inputs and clocks allow.

Beside every real end it keeps the end that full clocks would have given, with the same factors:
both follow the same dependencies, so what is lost to lowered clocks is known for each iteration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from perseusd.emulation.fasttime.program import Program, Step
from perseusd.emulation.fasttime.rank import FastRank
from perseusd.emulation.fasttime.virtual import NS, VirtualTime


class Listener(Protocol):
    """What a rank's hooks report to."""

    def started(self, now: int, rank: FastRank, step: Step) -> None: ...

    def ended(self, now: int, rank: FastRank) -> None: ...


@dataclass(frozen=True)
class Turn:
    """One iteration of one replica.

    factors: by rank, of its computations' durations. lengths: by microbatch, likewise.
    lags_ns: by rank, from a neighbour's end to its own start.
    stalls: by (rank, position), how long it waits before that computation, and what happens then.
    """

    program: Program
    factors: Sequence[float]
    lengths: Sequence[float]
    lags_ns: Sequence[int]
    stalls: dict[tuple[int, int], tuple[int, Callable[[int], None]]]


class FastReplica:
    """ranks: in the order of their stages. done: called with the time when all have ended."""

    def __init__(
        self,
        ranks: Sequence[FastRank],
        noise: float,
        time: VirtualTime,
        listener: Listener,
        done: Callable[[int], None],
    ) -> None:
        self.ranks = ranks
        self._noise, self._time, self._listener, self._done = noise, time, listener, done
        self._turn: Turn
        self._unfinished = 0

    def begin(self, now: int, turn: Turn) -> None:
        self._turn = turn
        self._unfinished = len(self.ranks)
        for rank in self.ranks:
            rank.begin(now)
        for rank in self.ranks:
            self._proceed(now, rank)

    def reclocked(self, now: int, rank: FastRank, index: int) -> None:
        """A GPU's clock has changed."""
        end = rank.gpu.set_clock(now, index)
        if end is not None:
            self._expect(rank, end)

    @property
    def full_end_ns(self) -> int:
        """When the iteration would have ended with every clock full."""
        return max(rank.shadow.free_ns for rank in self.ranks)

    def _proceed(self, now: int, rank: FastRank) -> None:
        """If everything the next computation waits for has ended, its start is settled."""
        order = self._turn.program.orders[rank.rank]
        if rank.arrived or rank.position == len(order):
            return
        start = rank.free_ns
        lag_ns = self._turn.lags_ns[rank.rank]
        for other, position in order[rank.position].inputs:
            ends = self.ranks[other].ends_ns
            if position >= len(ends):
                return
            start = max(start, ends[position] + lag_ns)
        rank.arrived = True
        if start > now:
            self._time.at(start, self._arrive, rank)
        else:
            self._arrive(now, rank)

    def _arrive(self, now: int, rank: FastRank) -> None:
        stall_ns, happens = self._turn.stalls.get((rank.rank, rank.position), (0, None))
        if happens is None:
            self._start(now, rank, 0)
            return
        happens(now)
        self._time.at(now + stall_ns, self._start, rank, stall_ns)

    def _start(self, now: int, rank: FastRank, stall_ns: int) -> None:
        step = self._turn.program.orders[rank.rank][rank.position]
        factor = self._factor(rank, step)
        self._shadow(rank, step, factor, stall_ns)
        end = rank.gpu.start(now, rank.curves[step.instruction], factor)
        self._listener.started(now, rank, step)
        self._expect(rank, end)

    def _factor(self, rank: FastRank, step: Step) -> float:
        turn = self._turn
        noise = rank.noise.lognormvariate(0, self._noise)
        return noise * turn.factors[rank.rank] * turn.lengths[step.microbatch]

    def _shadow(self, rank: FastRank, step: Step, factor: float, stall_ns: int) -> None:
        shadow, curve = rank.shadow, rank.curves[step.instruction]
        lag_ns = self._turn.lags_ns[rank.rank]
        start = shadow.free_ns
        for other, position in step.inputs:
            start = max(start, self.ranks[other].shadow.ends_ns[position] + lag_ns)
        seconds = factor * curve.time_s[-1]
        shadow.free_ns = start + stall_ns + round(seconds * NS)
        shadow.ends_ns.append(shadow.free_ns)
        shadow.busy_s += seconds
        shadow.busy_j += factor * curve.energy_j[-1]

    def _expect(self, rank: FastRank, end: int) -> None:
        rank.version += 1
        self._time.at(end, self._end, rank, rank.version)

    def _end(self, now: int, rank: FastRank, version: int) -> None:
        if version != rank.version:
            return
        step = self._turn.program.orders[rank.rank][rank.position]
        rank.version += 1
        rank.gpu.stop(now)
        self._listener.ended(now, rank)
        rank.free_ns, rank.arrived = now, False
        rank.ends_ns.append(now)
        rank.position += 1
        for other in step.outputs:
            self._proceed(now, self.ranks[other])
        if rank.position < len(self._turn.program.orders[rank.rank]):
            self._proceed(now, rank)
            return
        self._unfinished -= 1
        if not self._unfinished:
            self._done(now)
