"""What a plan does when clock writes take time, by the plainest simulation of one iteration.

The model (docs/clock-writes.md):

- A rank whose clock changes before a computation asks for the new one when the computation before
  has ended; for its first computation, when the iteration begins. Where `full_clock_at_end`, it
  asks for full clock when its last computation has ended, and the iteration begins there.
- Each of its GPUs has to be written. A node's writes are served one at a time, each takes
  `write_latency_s`, the first asked for goes first (of those asked for at once: the lower rank's,
  and of one rank's the lower GPU's). A rank that asks again withdraws what has not begun. A GPU
  that has the clock already, or is just getting it, is not written.
- Until its write lands a GPU runs at its old clock. A rank is as slow as its slowest GPU: a raise
  takes effect with the last of its writes, a lowering with the first.
- A landing inside a computation splits it: the share done is the time it ran over what all of it
  takes at that clock, and each GPU's energy goes by shares likewise. Waiting costs the same at
  every clock, so a write that lands while the rank waits for its inputs costs nothing.

Nothing here is shared with the optimiser.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from perseusd.core.model import Computation, Curve, Kind, Plan, Problem

Floats = NDArray[np.float64]
Clock = int | None
#: what a computation takes (s) and costs (J) on GPUs that have these clocks
_Paces = dict[tuple[Kind, tuple[Clock, ...]], tuple[float, float]]


@dataclass(frozen=True)
class Landed:
    """One iteration: when computations start and the last one ends, seconds; cost in joules.

    cost_j: energy minus blocking power × time, of all ranks' computations; of one GPU per rank.
    """

    start_s: dict[Computation, float]
    end_s: float
    cost_j: float


def land(problem: Problem, plan: Plan, factors: Sequence[Floats]) -> list[Landed]:
    """Run an iteration of the plan for each of K samples of the noise.

    factors: per rank, (computations, K) what durations are multiplied by, in execution order.
    """
    paces: _Paces = {}
    return [
        _Iteration(problem, plan, [f[:, k].tolist() for f in factors], paces).run()
        for k in range(factors[0].shape[1])
    ]


def time_and_energy(curve: Curve, clock: Clock) -> tuple[float, float]:
    """Seconds and joules at any clock that a GPU may still have; None is the curve's highest.

    Between measured clocks in proportion; below the lowest both grow as the clock falls.
    """
    if clock is None:
        return curve.time_s[-1], curve.energy_j[-1]
    below = max(1.0, curve.clock_mhz[0] / clock)
    time = float(np.interp(clock, curve.clock_mhz, curve.time_s))
    energy = float(np.interp(clock, curve.clock_mhz, curve.energy_j))
    return time * below, energy * below


@dataclass
class _Rank:
    """A rank at its next or present computation, which began or will begin at start_s."""

    asked: Clock
    position: int = 0
    start_s: float | None = None
    since_s: float = 0.0
    done: float = 0.0
    finish_s: float = 0.0


@dataclass
class _Node:
    """Writes that wait, as GPUs in the order they were asked for, and the one under way."""

    waiting: list[int] = field(default_factory=list)
    writing: int | None = None
    writing_clock: Clock = None


class _Iteration:
    def __init__(
        self, problem: Problem, plan: Plan, factors: Sequence[Sequence[float]], paces: _Paces
    ) -> None:
        self._problem, self._plan, self._factors, self._paces = problem, plan, factors, paces
        self._orders = problem.pipeline.orders
        self._position = {
            c: (rank, at) for rank, order in enumerate(self._orders) for at, c in enumerate(order)
        }
        self._inputs: dict[Computation, list[tuple[Computation, float]]] = {}
        self._users: dict[Computation, list[Computation]] = {}
        for edge in problem.pipeline.edges:
            self._inputs.setdefault(edge.after, []).append((edge.before, edge.lag_s))
            self._users.setdefault(edge.before, []).append(edge.after)
        self._ranks = [_Rank(self._first_clock(rank)) for rank in range(len(self._orders))]
        self._clock = [r.asked for r in self._ranks for _ in range(problem.gpus_per_rank)]
        self._nodes = [_Node() for _ in range(-(-len(self._clock) // problem.gpus_per_node))]
        #: (time, 0 for a landing and 1 for an end, node or rank), soonest first
        self._coming: list[tuple[float, int, int]] = []
        self._start: dict[Computation, float] = {}
        self._end: dict[Computation, float] = {}
        self._cost = 0.0

    def run(self) -> Landed:
        for rank in range(len(self._ranks)):
            self._ask(rank, 0.0)
            self._begin(rank)
        while len(self._end) < len(self._position):
            now, is_end, which = heapq.heappop(self._coming)
            if not is_end:
                self._write_landed(which, now)
            elif self._ranks[which].start_s is not None and self._ranks[which].finish_s == now:
                self._ended(which, now)
        return Landed(self._start, max(self._end.values()), self._cost)

    def _first_clock(self, rank: int) -> Clock:
        clocks = self._plan.clocks[rank]
        return None if self._problem.full_clock_at_end or not clocks else clocks[-1]

    def _ask(self, rank: int, now: float) -> None:
        """Ask for the clock of the rank's next computation, or for full clock after its last."""
        clocks, at = self._plan.clocks[rank], self._ranks[rank].position
        if at == len(clocks) and not self._problem.full_clock_at_end:
            return
        clock = clocks[at] if at < len(clocks) else None
        if clock == self._ranks[rank].asked:
            return
        self._ranks[rank].asked = clock
        for gpu in self._gpus(rank):
            node = self._nodes[gpu // self._problem.gpus_per_node]
            if gpu in node.waiting:
                node.waiting.remove(gpu)
            has = node.writing_clock if node.writing == gpu else self._clock[gpu]
            if has != clock:
                node.waiting.append(gpu)
                self._serve(gpu // self._problem.gpus_per_node, now)

    def _serve(self, number: int, now: float) -> None:
        node = self._nodes[number]
        if node.writing is None and node.waiting:
            node.writing = node.waiting.pop(0)
            node.writing_clock = self._ranks[node.writing // self._problem.gpus_per_rank].asked
            heapq.heappush(self._coming, (now + self._problem.write_latency_s, 0, number))

    def _write_landed(self, number: int, now: float) -> None:
        node = self._nodes[number]
        assert node.writing is not None
        rank = node.writing // self._problem.gpus_per_rank
        self._advance(rank, now)
        self._clock[node.writing] = node.writing_clock
        self._expect(rank)
        node.writing = None
        self._serve(number, now)

    def _begin(self, rank: int) -> None:
        """Start the rank's next computation as soon as its inputs are there, if that is known."""
        state, order = self._ranks[rank], self._orders[rank]
        if state.start_s is not None or state.position == len(order):
            return
        inputs = self._inputs.get(order[state.position], [])
        if any(before not in self._end for before, _ in inputs):
            return
        before = [self._end[order[state.position - 1]]] if state.position else [0.0]
        state.start_s = max(before + [self._end[c] + lag for c, lag in inputs])
        state.since_s, state.done = state.start_s, 0.0
        self._start[order[state.position]] = state.start_s
        self._expect(rank)

    def _expect(self, rank: int) -> None:
        state = self._ranks[rank]
        if state.start_s is not None:
            state.finish_s = state.since_s + (1.0 - state.done) * self._pace(rank)[0]
            heapq.heappush(self._coming, (state.finish_s, 1, rank))

    def _advance(self, rank: int, now: float) -> None:
        """Account for what the rank has done since it last changed its clock."""
        state = self._ranks[rank]
        if state.start_s is not None and now > state.since_s:
            seconds, joules = self._pace(rank)
            share = (now - state.since_s) / seconds
            self._cost += share * joules
            state.done += share
            state.since_s = now

    def _ended(self, rank: int, now: float) -> None:
        state = self._ranks[rank]
        self._cost += (1.0 - state.done) * self._pace(rank)[1]
        ended = self._orders[rank][state.position]
        self._end[ended] = now
        state.position, state.start_s = state.position + 1, None
        self._ask(rank, now)
        self._begin(rank)
        for user in self._users.get(ended, []):
            user_rank, at = self._position[user]
            if self._ranks[user_rank].position == at:
                self._begin(user_rank)

    def _gpus(self, rank: int) -> range:
        size = self._problem.gpus_per_rank
        return range(rank * size, (rank + 1) * size)

    def _pace(self, rank: int) -> tuple[float, float]:
        """What all of the present computation takes and costs, with the GPUs' clocks as they are.

        Each GPU does the work at its own clock and waits for the slowest.
        """
        at = self._ranks[rank].position
        kind, clocks = self._orders[rank][at].kind, tuple(self._clock[g] for g in self._gpus(rank))
        if (kind, clocks) not in self._paces:
            points = [time_and_energy(self._problem.curves[kind], clock) for clock in clocks]
            power = self._problem.blocking_power_w[rank]
            cost = sum(energy - power * time for time, energy in points) / len(points)
            self._paces[kind, clocks] = max(time for time, _ in points), cost
        seconds, joules = self._paces[kind, clocks]
        return seconds * self._factors[rank][at], joules * self._factors[rank][at]
