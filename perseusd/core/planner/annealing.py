"""Simulated annealing (Kirkpatrick et al. 1983) over runs, as one compiled loop.

What falls is  cost + write price · writes + late price · max(0, end − latest)
                    − early price · max(0, latest − end).

rules: latest, late price, early price, write price, confidence (−1: the mean), and the most that
    the iteration time may fall by where durations fall by 1 s in all.
limits: most writes per rank, whether full clock at the iteration's end counts as one.
state: value now (cost and writes' price), end now, and the same of the best that is not late.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from perseusd.core.planner.compiled import compiled
from perseusd.core.planner.instance import Instance
from perseusd.core.planner.moves import (
    FIRST_MERGE,
    FIRST_SPLIT,
    KINDS,
    RUNS,
    Runs,
    below,
    change,
    take_back,
    written,
)
from perseusd.core.planner.timetable import Timetable
from perseusd.core.planner.timetable_kernels import (
    LAYOUT,
    TIMES,
    Layout,
    Times,
    keep_change,
    statistic,
    try_change,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Options = NDArray[np.intp]

_PAIRS = 6  # of 16 proposals, how many are two changes at once
_GAIN = 1e-12  # relative: less is rounding
_LOG = 8  # entries of the log per computation: two changes of at most two runs each, and room
_SEED = 0x9E3779B97F4A7C15  # any odd number: of the random changes, with the problem's own
# Steps of a first round: so many per computation, but no more than this much work, in nodes timed.
_STEPS_EACH, _WORK, _LEAST_STEPS = 300, 2e7, 8192


@compiled(f"i8({RUNS}, u8[::1], i8[::1])", inner=True)
def _propose(runs: Runs, random: NDArray[np.uint64], limits: Ints) -> int:
    """One or two small changes within the limit on writes; the length of the log, 0 for none."""
    rank_first, full, option = runs[1], runs[4], runs[0]
    most, at_end = limits[0], limits[1]
    rank = below(random, len(full))
    what = below(random, KINDS)
    logged = change(runs, random, rank, at_end, what, 0)
    other = rank
    if what == FIRST_MERGE or below(random, 16) < _PAIRS:
        what = below(random, KINDS)
        if logged and below(random, 2):
            other = below(random, len(full))
        elif below(random, 2):  # a write saved here is spent there
            what = FIRST_SPLIT
        logged = change(runs, random, other, at_end, what, logged)
    for r in (rank, other):
        if written(option, rank_first[r], rank_first[r + 1], full[r], at_end) > most:
            take_back(runs, logged)
            return 0
    return logged


@compiled(f"void({LAYOUT}, {TIMES}, {RUNS}, f8[::1], i8[::1], f8[::1], i8[::1], u8[::1], i8, f8)")
def _anneal(
    layout: Layout,
    times: Times,
    runs: Runs,
    rules: Floats,
    limits: Ints,
    state: Floats,
    best: Ints,
    random: NDArray[np.uint64],
    steps: int,
    heat: float,
) -> None:
    """So many proposals at a temperature of `heat` joules."""
    option, rank_first, node_of, kind_of, full, time, cost, log_slot, log_option = runs
    duration, wanted, tried, changed, touched = times[4], times[5], times[7], times[8], times[9]
    latest, late_price, early_price = rules[0], rules[1], rules[2]
    write_price, confidence, longest = rules[3], rules[4], rules[5]
    at_end = limits[1]
    n = len(node_of)
    rank_of = np.empty(n, np.int64)
    for r in range(len(full)):
        for slot in range(rank_first[r], rank_first[r + 1]):
            rank_of[slot] = r
    before = np.zeros(len(full), np.int64)
    for r in range(len(full)):
        before[r] = written(option, rank_first[r], rank_first[r + 1], full[r], at_end)
    for _ in range(steps):
        logged = _propose(runs, random, limits)
        if not logged:
            continue
        touched[n + 1] += 1
        number = touched[n + 1]
        first, last = n, -1
        more = sooner = 0.0
        rank_a, rank_b = rank_of[log_slot[0]], rank_of[log_slot[logged - 1]]
        for at in range(logged):
            slot = log_slot[at]
            node = node_of[slot]
            if changed[node] == number:  # a slot's first entry has what it was before
                continue
            kind, value = kind_of[slot], option[slot]
            changed[node], wanted[node] = number, time[kind, value]
            if value == log_option[at]:
                continue
            more += cost[kind, value] - cost[kind, log_option[at]]
            sooner += max(0.0, duration[node] - wanted[node])
            first, last = min(first, node), max(last, node)
        if last < 0:
            take_back(runs, logged)
            continue
        writes_a = written(option, rank_first[rank_a], rank_first[rank_a + 1], full[rank_a], at_end)
        writes_b = written(option, rank_first[rank_b], rank_first[rank_b + 1], full[rank_b], at_end)
        more += write_price * (writes_a - before[rank_a])
        if rank_b != rank_a:
            more += write_price * (writes_b - before[rank_b])
        over = state[1] - latest
        penalty = over * (late_price if over > 0 else early_price)
        # How much the sum may rise is drawn before the timing. The end falls by no more than the
        # durations do, so that most proposals need not be timed.
        room = -heat * math.log((1.0 + below(random, 1 << 30)) / (1 << 30))
        least = over - sooner * longest
        if more + least * (late_price if least > 0 else early_price) - penalty > room:
            take_back(runs, logged)
            continue
        try_change(layout, times, first, last)
        end = statistic(tried, confidence)
        over = end - latest
        if more + over * (late_price if over > 0 else early_price) - penalty > room:
            take_back(runs, logged)
            continue
        keep_change(layout, times, first, last)
        before[rank_a], before[rank_b] = writes_a, writes_b
        state[0] += more
        state[1] = end
        if over <= 0.0 and state[0] < state[2] - _GAIN * abs(state[2]):
            state[2], state[3] = state[0], end
            for slot in range(n):
                best[slot] = option[slot]


class Annealing:
    """A plan of at most `max_writes` writes per rank, changed at random: see search.Walk."""

    def __init__(self, inst: Instance, safe: Options, latest: float, write_price: float) -> None:
        self._inst, self._latest, self._write_price = inst, latest, write_price
        network, problem = inst.network, inst.problem
        n = len(network)
        self._times = Timetable.of(network, inst.factor, problem.confidence)
        # Factors average to 1 over the samples, and so does what the mean may fall by.
        self._longest = 1.0 if problem.confidence is None else float(inst.factor.max())
        full = [int(inst.full[nodes[0]]) for nodes in inst.graph.order]
        self._runs = (
            np.zeros(n, dtype=np.int64),
            network.rank_first,
            network.rank_node,
            network.kind[network.rank_node],
            np.array(full, dtype=np.int64),
            inst.kind_time,
            inst.kind_cost,
            np.zeros(_LOG * n, dtype=np.int64),
            np.zeros(_LOG * n, dtype=np.int64),
        )
        most = n if problem.max_writes is None else problem.max_writes
        self._limits = np.array([most, int(problem.full_clock_at_end)])
        self._best: Ints = safe[network.rank_node].astype(np.int64)
        self._state = np.array([0.0, 0.0, self._value(safe), 0.0])
        self._random = np.array([_SEED ^ problem.seed], dtype=np.uint64)

    @property
    def late(self) -> bool:
        return bool(self._state[1] > self._latest)

    @property
    def best(self) -> Options:
        return self._by_node(self._best)

    @property
    def best_value(self) -> float:
        return float(self._state[2])

    def steps(self) -> int:
        n, samples = self._inst.factor.shape
        return int(min(_STEPS_EACH * n, max(_WORK / (n * (1 + samples / 16)), _LEAST_STEPS)))

    def begin(self, option: Options) -> None:
        self._runs[0][:] = option[self._inst.network.rank_node]
        self._state[0] = self._value(option)
        self._state[1] = self._times.set(self._inst.durations(option))
        if not self.late and self._state[0] < self._state[2]:
            self._state[2:] = self._state[:2]
            self._best[:] = self._runs[0]

    def go(self, steps: int, late_price: float, early_price: float, heat: float) -> None:
        times = self._times
        rules = np.array(
            [
                self._latest,
                late_price,
                early_price,
                self._write_price,
                times.confidence,
                self._longest,
            ]
        )
        changing = (rules, self._limits, self._state, self._best, self._random)
        _anneal(times.layout, times.times, self._runs, *changing, steps, heat)

    def _value(self, option: Options) -> float:
        inst = self._inst
        return inst.total_cost(option) + self._write_price * inst.total_writes(option)

    def _by_node(self, slots: Ints) -> Options:
        option = np.empty(len(slots), dtype=np.intp)
        option[self._inst.network.rank_node] = slots
        return option
