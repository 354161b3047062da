"""Making a plan keep its deadline, at least cost, when clock writes take time.

A local search over the runs of the plan, every candidate run through the event simulation of
latency.py: a run's clock goes up or down, a border between runs moves (a raise that lands too late
is asked for sooner, or at another moment than the writes of other ranks of the node), a run joins
its neighbour (a write that does not pay is dropped), a run is split. First what is late is priced,
ever higher, until nothing is; then pairs are exchanged, of which one saves and the other buys the
time for it; then a few moves are made at random, again and again, to search on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from perseusd.core.planner.instance import Instance
from perseusd.core.planner.latency import NO_CHANGE, Change, SlowWrites
from perseusd.core.planner.runs import spans

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Options = NDArray[np.intp]

_STEPS = (-4, -2, -1, 1, 2, 4)  # clocks a run goes up or down at once
_SHIFTS = (1, 2, 3)  # positions a border moves at once
# The first price of lateness, in units of the mean power at full clock; how much it grows while the
# plan is late, and how often at most. A lower one makes better plans later.
_PRICE, _PRICE_GROWTH, _PRICE_STEPS = 16.0, 2.0, 10
_PASSES = 1  # over all moves at each price; more is better only where there is much time
_STRICT = 1e6  # in the same units: being late never pays
_EXCHANGES, _PAIRS = (
    48,
    256,
)  # so many savings and purchases are paired; the best of those are tried
# To get away from a plan that no move improves: lateness is allowed for a while at a price drawn
# from these powers of 2 (in the same units), or a few moves are made at random. So often in vain.
_BARGAINS, _PRICES = 0.5, (1.0, 5.0)
_KICK, _KICKS = 4, 24
_AT_ONCE = 400_000  # computations × samples that are timed before the clock is looked at
_TOP = 24  # of all moves tried, the best so many are then made, each if it still gains
_LATE = 1e-12  # relative: the evaluator's sums in another order differ by about 1e-15
_GAIN = 1e-9  # of the cost at full clock: less is rounding


class Move(NamedTuple):
    """Positions first to end (exclusive) of a rank go to a level."""

    rank: int
    first: int
    end: int
    level: int


def repaired(
    inst: Instance,
    option: Options,
    more_time: Callable[[], bool],
    *,
    write_price_j: float = 0.0,
) -> Options:
    """(n,) options near `option` which are late neither with slow writes nor with immediate ones.

    option: (n,) within the problem's `max_writes`, perhaps late; so is the answer within it.
    more_time: asked before every step; the best so far is returned when it says no.
    write_price_j: what one clock write must save, beside what it costs by taking time.
    """
    return _Repair(SlowWrites.of(inst), option, more_time, write_price_j).run()


class _Repair:
    """The best (n,) levels on time so far, and what is needed to find better ones."""

    def __init__(
        self,
        slow: SlowWrites,
        option: Options,
        more_time: Callable[[], bool],
        write_price_j: float,
    ) -> None:
        self._slow, self._inst = slow, slow.inst
        self._more_time, self._write_price = more_time, write_price_j
        inst = self._inst
        self._kind, self._order = inst.graph.kind_index, inst.graph.order
        self._latest = inst.deadline_s * (1 + _LATE)
        baseline = inst.energy(inst.total_cost(inst.full))
        self._power, self._least_gain = baseline / inst.deadline_s, _GAIN * baseline
        samples = inst.factor.shape[1]
        self._chunk = max(1, _AT_ONCE // (samples * len(inst.graph)))
        limit = inst.problem.max_writes
        self._most = float(len(inst.graph) if limit is None else limit)
        self._choices = [self._levels_of(nodes) for nodes in self._order]
        self._random = np.random.default_rng(inst.problem.seed)
        self._cut_short = False
        """Whether time was up before all values asked for were there."""
        self._start = slow.levels(option)
        self._best, self._best_value = slow.levels(inst.full), np.inf
        self._offer(self._best)

    def run(self) -> Options:
        self._offer(self._raised())
        self._bargain()
        self._polish(self._best)
        in_vain = 0
        while in_vain < _KICKS and self._more_time():
            before = self._best_value
            self._polish(self._disturbed(self._best))
            in_vain = 0 if self._best_value < before - self._least_gain else in_vain + 1
        return self._slow.option_at[self._kind, self._best].astype(np.intp)

    def _bargain(self) -> None:
        """Price lateness ever higher, from the plan as it was given."""
        level, price = self._start, _PRICE * self._power
        for _ in range(_PRICE_STEPS):
            level, late = self._swept(level, price, passes=_PASSES)
            if not late or not self._more_time():
                return
            price *= _PRICE_GROWTH

    def _polish(self, level: Ints) -> None:
        """Descend, and exchange as long as that helps.

        Not from where time ended a descent: what is exchanged there may be better for once than
        what the search would have gone on to, and then more time would make plans worse.
        """
        improving = True
        while improving and self._more_time():
            level, late = self._swept(level, _STRICT * self._power, True)
            improving = not late and self._more_time() and self._exchange(level)

    def _swept(
        self, level: Ints, price: float, splits: bool = False, passes: int = 1000
    ) -> tuple[Ints, bool]:
        """Levels after so many passes over all moves, or until none gains or time is up.

        And whether they are late.
        """
        level = level.copy()
        value, late = self._value(level, price)
        terms = np.array(
            [value, self._latest, price, self._write_price, self._most, self._least_gain, 0.0]
        )
        made = True
        while made and passes and self._more_time():
            made, passes = False, passes - 1
            moves = self._random.permutation(np.array(self._moves(level, splits)))
            for first in range(0, len(moves), self._chunk):
                if self._made(level, moves[first : first + self._chunk], terms):
                    made, late = True, self._offer(level)
                if not self._more_time():
                    break
        return level, late

    def _made(self, level: Ints, moves: Ints, terms: Floats) -> bool:
        """Make the best of the moves, each if it still gains; whether there were any."""
        terms[-1] = 0.0
        gain = self._slow.sweep(level, moves, terms)
        best = np.argsort(-gain, kind="stable")[:_TOP]
        best = best[gain[best] > 0.0]
        terms[-1] = 1.0
        self._slow.sweep(level, np.ascontiguousarray(moves[best]), terms)
        return len(best) > 0

    def _offer(self, level: Ints) -> bool:
        """Keep levels that are on time and the best so far. Whether they are late."""
        value, late = self._value(level, 0.0)
        if not late and value < self._best_value:
            self._best, self._best_value = level.copy(), value
        return late

    def _value(self, level: Ints, price: float) -> tuple[float, bool]:
        values, ends = self._values(level, [NO_CHANGE])
        late = float(ends[0]) - self._latest
        return float(values[0]) + price * max(0.0, late), late > 0

    def _values(self, level: Ints, changes: Sequence[Change]) -> tuple[Floats, Floats]:
        """(changes,) value and end after each.

        The value is infinite where there are too many writes; both are where time was up before.
        """
        values, ends = np.full((2, len(changes)), np.inf)
        for first in range(0, len(changes), self._chunk):
            if first and not self._more_time():
                self._cut_short = True
                break
            some = slice(first, first + self._chunk)
            made, values[some], writes = self._slow.outcomes(level, changes[some])
            values[some] += self._write_price * writes[:, 0]
            values[some][writes[:, 1] > self._most] = np.inf
            ends[some] = self._slow.counted(made)
        return values, ends

    def _levels_of(self, nodes: Options) -> Ints:
        """Levels that some kind of a rank may choose, ascending; the last is full clock."""
        kinds = np.unique(self._kind[nodes]).tolist()
        clocks = [self._slow.level_of[k, : len(self._inst.kind_clocks[k])] for k in kinds]
        return np.unique(np.concatenate(clocks))

    def _raised(self) -> Ints:
        """The plan with its runs raised until it is on time, those where time is cheapest first."""
        runs = self._runs_by_price()
        low, high = 0, len(runs) * max(map(len, self._choices))
        while low < high:
            middle = (low + high) // 2
            if self._value(self._raised_by(runs, middle), 0.0)[1]:
                low = middle + 1
            else:
                high = middle
        return self._raised_by(runs, high)

    def _raised_by(self, runs: Sequence[Move], steps: int) -> Ints:
        """One run after another one choice up, round and round, so many times in all."""
        level = self._start.copy()
        rounds, rest = divmod(steps, len(runs))
        for k, run in enumerate(runs):
            choices = self._choices[run.rank]
            at = int(np.searchsorted(choices, run.level)) + rounds + (k < rest)
            nodes, levels = self._change(run._replace(level=choices[min(at, len(choices) - 1)]))
            level[nodes] = levels
        return level

    def _runs_by_price(self) -> list[Move]:
        """The plan's runs, as they are, in the order of what a second costs that a raise saves."""
        found: list[tuple[float, Move]] = []
        for rank, nodes in enumerate(self._order):
            level, choices = self._start[nodes].tolist(), self._choices[rank]
            for first, end in spans(level):
                kinds = self._kind[nodes[first:end]]
                above = choices[min(np.searchsorted(choices, level[first]) + 1, len(choices) - 1)]
                saved = (self._slow.time[kinds, level[first]] - self._slow.time[kinds, above]).sum()
                paid = (self._slow.cost[kinds, above] - self._slow.cost[kinds, level[first]]).sum()
                price = paid / saved if saved > 0 else np.inf
                found.append((float(price), Move(rank, first, end, level[first])))
        return [run for _, run in sorted(found)]

    def _disturbed(self, level: Ints) -> Ints:
        """Levels to search on from; perhaps late."""
        if self._random.random() < _BARGAINS:
            price = self._power * float(np.exp2(self._random.uniform(*_PRICES)))
            return self._swept(level, price)[0]
        return self._kicked(level)

    def _kicked(self, level: Ints) -> Ints:
        """A few moves, drawn at random, made together."""
        moves = self._moves(level, False)
        kicked = level
        for k in self._random.choice(len(moves), min(_KICK, len(moves)), replace=False).tolist():
            tried = kicked.copy()
            nodes, levels = self._change(moves[k])
            tried[nodes] = levels
            if np.isfinite(self._value(tried, 0.0)[0]):
                kicked = tried
        return kicked

    def _exchange(self, level: Ints) -> bool:
        """Make the best pair of moves that saves and is not late, in place; False for none.

        None either where time was up before all were seen, for the reason that `_polish` tells.
        """
        now, _ = self._value(level, 0.0)
        moves = self._moves(level)
        changes = [self._change(m) for m in moves]
        change, end = self._values(level, changes)
        if self._cut_short:
            return False
        joint = [_joined(changes[a], changes[b]) for a, b in self._pairs(moves, change - now, end)]
        if not joint:
            return False
        value, end = self._values(level, joint)
        if self._cut_short:
            return False
        value[end > self._latest] = np.inf
        best = int(value.argmin())
        if value[best] >= now - self._least_gain:
            return False
        level[joint[best][0]] = joint[best][1]
        self._offer(level)
        return True

    def _pairs(self, moves: Sequence[Move], change: Floats, end: Floats) -> list[tuple[int, int]]:
        """A saving move and one that buys time for it, the likeliest first."""
        price = _PRICE * self._power
        order = np.argsort(change + price * (end - self._latest), kind="stable")
        saving = order[change[order] < 0][:_EXCHANGES]
        buying = order[change[order] >= 0][:_EXCHANGES]
        late = np.maximum(end[saving][:, None] + end[buying] - 2 * self._latest, 0.0)
        value = change[saving][:, None] + change[buying]
        hope = np.where(value < 0, value + price * late, np.inf)
        found = []
        for flat in np.argsort(hope, axis=None, kind="stable")[: 2 * _PAIRS].tolist():
            row, column = divmod(flat, len(buying))
            a, b = int(saving[row]), int(buying[column])
            if np.isfinite(hope[row, column]) and _apart(moves[a], moves[b]):
                found.append((a, b))
        return found[:_PAIRS]

    def _change(self, move: Move) -> Change:
        nodes = self._order[move.rank][move.first : move.end].astype(np.int64)
        return nodes, self._slow.real[self._kind[nodes], move.level]

    def _moves(self, level: Ints, splits: bool = True) -> list[Move]:
        """All single moves; those that split a run only where asked for, as there are many."""
        return [
            Move(rank, first, end, new)
            for rank, nodes in enumerate(self._order)
            for first, end, new in sorted(
                set(_changes(level[nodes].tolist(), self._choices[rank].tolist(), splits))
            )
        ]


def _changes(
    level: Sequence[int], choices: Sequence[int], splits: bool
) -> Iterator[tuple[int, int, int]]:
    """(first, end, new level) within one rank."""
    runs = spans(level)
    for first, end in runs:
        for other in _near(level[first], choices):
            yield first, end, other
            length = 1
            while splits and length < end - first:
                yield first, first + length, other
                yield end - length, end, other
                length *= 2
    for (first, border), (_, end) in pairwise(runs):
        for shift in _SHIFTS:
            yield border, min(border + shift, end), level[first]
            yield max(border - shift, first), border, level[border]
        yield first, border, level[border]
        yield border, end, level[first]


def _near(level: int, choices: Sequence[int]) -> Iterator[int]:
    at = int(np.searchsorted(choices, level))
    for step in _STEPS:
        if 0 <= at + step < len(choices):
            yield choices[at + step]
    if level != choices[-1]:
        yield choices[-1]


def _apart(a: Move, b: Move) -> bool:
    return a.rank != b.rank or a.end < b.first or b.end < a.first


def _joined(a: Change, b: Change) -> Change:
    return np.concatenate([a[0], b[0]]), np.concatenate([a[1], b[1]])
