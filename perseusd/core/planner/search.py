"""Local search over real clocks, against the expected makespan over the samples of the noise.

The relaxation's clocks rounded to real ones are a little too slow or too fast. The search descends
on cost + price · lateness, raising the price until nothing is late, and then exchanges: one
computation or run faster, another slower, less cost in all. All candidates of a step are timed at
once (see graph.py), so a step costs about as much as a few makespans.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from perseusd.core.planner.instance import Instance
from perseusd.core.planner.moves import Move, free_moves, run_moves

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

# Columns timed at once: more does not fit the caches, fewer wastes the interpreter's time.
_COLUMNS = 2048
# How much the price of lateness grows while a plan stays late, and how often before giving up.
_PRICE_GROWTH, _PRICE_STEPS = 2.0, 12
_STRICT = 1e6  # times the price: being late never pays
# Of the time budget, how much may be spent when the descent must be done, and when what it left
# late must be on time.
_DESCENT_SHARE, _REPAIR_SHARE = 0.7, 0.85
# An exchange pairs the best of this many savings and purchases, and times the best of the pairs.
_EXCHANGES, _PAIRS = 96, 512
_LATE = 1e-12  # relative; sums in another order differ by about 1e-15
_GAIN = 1e-12  # of the plan's cost: less is rounding


class Search:
    """A plan that is improved in place.

    write_price_j: what one clock write must save.  late_price: J per second beyond the deadline.
    more_time: asked before each step whether less than a share of the time budget is spent.
    safe: options which are not late, to start from or to fall back on.
    """

    def __init__(
        self,
        inst: Instance,
        option: Ints,
        safe: Ints,
        late_price: float,
        write_price_j: float,
        more_time: Callable[[float], bool],
    ) -> None:
        self._inst = inst
        self._late_price = late_price
        self._write_price = write_price_j
        self._more_time = more_time
        self._latest = inst.deadline_s * (1 + _LATE)
        self._best, self._best_value = safe, self.value(safe)
        self._set(option)

    def improve(self) -> Ints:
        """The best options found that are not late."""
        price = self._late_price
        for _ in range(_PRICE_STEPS):
            self._descend(price, _DESCENT_SHARE)
            if self._end <= self._latest:
                break
            price *= _PRICE_GROWTH
        self._descend(_STRICT * self._late_price, _REPAIR_SHARE)
        self._set(self._best)
        improving = True
        while improving and self._more_time(1.0):
            self._descend(_STRICT * self._late_price, 1.0)
            improving = self._exchange()
        return self._best

    def _set(self, option: Ints) -> None:
        self._option = option
        self._cost = self._inst.total_cost(option)
        self._end = self._inst.mean_makespan(option)
        value = self.value(option)
        if self._end <= self._latest and value < self._best_value:
            self._best, self._best_value = option, value

    def value(self, option: Ints) -> float:
        """Cost with the price of its clock writes, in joules: what is minimised."""
        return self._inst.total_cost(option) + self._write_price * self._inst.total_writes(option)

    def _descend(self, price: float, share: float) -> None:
        while self._more_time(share):
            moves = self._moves()
            change = self._cost_changes(moves)
            late = self._ends(moves) - self._latest
            gain = price * max(0.0, self._end - self._latest) - change
            gain -= price * np.maximum(late, 0.0)
            if not self._take_best(moves, change, gain, price):
                return

    def _take_best(self, moves: Sequence[Move], change: Floats, gain: Floats, price: float) -> bool:
        """Make the best few moves together, as many as pay together."""
        chosen: list[int] = []
        scopes: set[int] = set()
        for k in np.argsort(-gain).tolist():
            if gain[k] <= _GAIN * abs(self._cost):
                break
            if moves[k].scope not in scopes:
                scopes.add(moves[k].scope)
                chosen.append(k)
        if not chosen:
            return False
        sizes = sorted({min(len(chosen), max(1, int(1.5**j))) for j in range(20)})
        joint = [_join([moves[k] for k in chosen[:size]]) for size in sizes]
        value = np.array([change[chosen[:size]].sum() for size in sizes])
        value += price * np.maximum(self._ends(joint) - self._latest, 0.0)
        self._make(joint[int(value.argmin())])
        return True

    def _exchange(self) -> bool:
        """Make the best pair of moves that saves and is not late. False when there is none."""
        moves = self._moves()
        change = self._cost_changes(moves)
        end = self._ends(moves)
        pairs = self._pairs(moves, change, end)
        joint = [_join([moves[a], moves[b]]) for a, b in pairs]
        value = np.array([change[a] + change[b] for a, b in pairs])
        value = np.where(self._ends(joint) <= self._latest, value, np.inf)
        if value.min(initial=np.inf) >= -_GAIN * abs(self._cost):
            return False
        self._make(joint[int(value.argmin())])
        return True

    def _pairs(self, moves: Sequence[Move], change: Floats, end: Floats) -> list[tuple[int, int]]:
        """A saving move and one that buys time for it, the likeliest first.

        The two are taken to act on the end as they do alone, which is right where they are on one
        critical path and too hopeful elsewhere.
        """
        order = np.argsort(change + self._late_price * (end - self._latest))
        saving = order[change[order] < 0][:_EXCHANGES]
        buying = order[change[order] > 0][:_EXCHANGES]
        scope = np.array([move.scope for move in moves])
        value = change[saving][:, None] + change[buying]
        late = np.maximum(end[saving][:, None] + end[buying] - self._end - self._latest, 0.0)
        hope = value + self._late_price * late
        hope[(value >= 0) | (scope[saving][:, None] == scope[buying])] = np.inf
        best = np.argsort(hope, axis=None)[:_PAIRS]
        rows, columns = np.unravel_index(best[np.isfinite(hope.flat[best])], hope.shape)
        return [(int(saving[a]), int(buying[b])) for a, b in zip(rows, columns, strict=True)]

    def _moves(self) -> list[Move]:
        limit = self._inst.problem.max_writes
        if limit is None:
            return free_moves(self._inst, self._option)
        return run_moves(self._inst, self._option, limit)

    def _cost_changes(self, moves: Sequence[Move]) -> Floats:
        cost, now = self._inst.cost, self._option
        return np.array(
            [
                float((cost[m.nodes, m.option] - cost[m.nodes, now[m.nodes]]).sum())
                + self._write_price * m.writes
                for m in moves
            ]
        )

    def _ends(self, moves: Sequence[Move]) -> Floats:
        """(moves,) expected makespan after each."""
        inst, samples = self._inst, self._inst.factor.shape[1]
        now = inst.durations(self._option)
        ends = [np.zeros(0)]
        size = max(1, _COLUMNS // samples)
        for first in range(0, len(moves), size):
            some = moves[first : first + size]
            durations = np.repeat(now[:, None], len(some), axis=1)
            for k, move in enumerate(some):
                durations[move.nodes, k] = inst.time[move.nodes, move.option]
            drawn = durations[:, :, None] * inst.factor[:, None, :]
            makespans = inst.graph.makespan(drawn.reshape(len(now), -1))
            ends.append(makespans.reshape(len(some), samples).mean(axis=1))
        return np.concatenate(ends)

    def _make(self, move: Move) -> None:
        option = self._option.copy()
        option[move.nodes] = move.option
        self._set(option)


def _join(moves: Sequence[Move]) -> Move:
    """Several moves as one; the first one's scope stands for all."""
    return Move(
        moves[0].scope,
        np.concatenate([m.nodes for m in moves]),
        np.concatenate([m.option for m in moves]),
        sum(m.writes for m in moves),
    )
