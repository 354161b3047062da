"""Free clocks under noise: each computation in turn gets the option that is best as all others are.

With everything but computation i held, its iteration lasts, in sample k,

    max( without(k), start(i, k) + factor(i, k) · time(i, option) + after(i, k) )

where `without` is the longest path that avoids i: over an edge that crosses i (timetable.py). So
all its options are compared exactly by a few array operations. In a sweep in topological order only
ends change, in one against it only rests: none needs to be timed again.

A temperature makes it Gibbs sampling (Geman and Geman 1984): an option is drawn with probability
∝ exp(−value / temperature), which as it falls leaves less and less of the minima that no single
computation can leave.

FREE: option, kind (n,); full (kinds,); time, cost (kinds, C).
rules, state: as in annealing.py; the writes' price is not used.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from perseusd.core.planner.compiled import compiled
from perseusd.core.planner.instance import Instance
from perseusd.core.planner.moves import below
from perseusd.core.planner.timetable import Timetable
from perseusd.core.planner.timetable_kernels import LAYOUT, TIMES, Layout, Times, statistic

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Options = NDArray[np.intp]
Free = tuple[Ints, Ints, Ints, Floats, Floats]

FREE = "Tuple((i8[::1], i8[::1], i8[::1], f8[:, ::1], f8[:, ::1]))"
_REACH = 3  # options up and down that are tried
_SEED = 0x9E3779B97F4A7C15  # any odd number: of the draws, with the problem's own
# Sweeps of a first round: at most so much work, in nodes times samples.
_WORK, _FEWEST, _MOST = 8e6, 64, 192


@compiled(f"void({LAYOUT}, {TIMES}, i8, f8[:, ::1])", inner=True)
def _around(layout: Layout, times: Times, node: int, lines: Floats) -> None:
    """lines: (3, K) start of the node, what follows it, and the longest path that avoids it."""
    into_first, into_node, into_lag, from_first, from_node, from_lag = layout[:6]
    cross_first, cross_tail, cross_head, cross_lag = layout[6:]
    end, rest = times[1], times[2]
    samples = lines.shape[1]
    lines[:] = 0.0
    start, after, without = lines[0], lines[1], lines[2]
    for e in range(into_first[node], into_first[node + 1]):
        row, lag = end[into_node[e]], into_lag[e]
        for k in range(samples):
            reach = row[k] + lag
            start[k] = reach if reach > start[k] else start[k]
    for e in range(from_first[node], from_first[node + 1]):
        row, lag = rest[from_node[e]], from_lag[e]
        for k in range(samples):
            reach = row[k] + lag
            after[k] = reach if reach > after[k] else after[k]
    for c in range(cross_first[node], cross_first[node + 1]):
        if cross_tail[c] != node:
            row, other, lag = end[cross_tail[c]], rest[cross_head[c]], cross_lag[c]
            for k in range(samples):
                reach = row[k] + other[k] + lag
                without[k] = reach if reach > without[k] else without[k]


@compiled(f"void({LAYOUT}, {TIMES}, {FREE}, f8[::1], f8[::1], u8[::1], f8, i8)")
def _sweep(
    layout: Layout,
    times: Times,
    free: Free,
    rules: Floats,
    state: Floats,
    random: NDArray[np.uint64],
    heat: float,
    forward: int,
) -> None:
    """Every computation once. Forward, rests are right before and ends after; backward, the other
    way round. state: value and end now."""
    option, kind_of, full, time, cost = free
    factor, end, rest, duration = times[0], times[1], times[2], times[4]
    latest, late_price, early_price, confidence = rules[0], rules[1], rules[2], rules[4]
    n, samples = factor.shape
    lines = np.empty((3, samples))
    ends = np.empty(samples)
    value = np.empty(2 * _REACH + 1)
    finish = np.empty(2 * _REACH + 1)
    for at in range(n):
        node = at if forward else n - 1 - at
        _around(layout, times, node, lines)
        start, after, without = lines[0], lines[1], lines[2]
        kind, now = kind_of[node], option[node]
        low, high = max(0, now - _REACH), min(full[kind], now + _REACH)
        least = np.inf
        for p in range(low, high + 1):
            length = time[kind, p]
            for k in range(samples):
                through = start[k] + length * factor[node, k] + after[k]
                ends[k] = through if through > without[k] else without[k]
            finish[p - low] = statistic(ends, confidence)
            over = finish[p - low] - latest
            worth = cost[kind, p] + over * (late_price if over > 0.0 else early_price)
            value[p - low] = worth
            least = min(least, worth)
        picked = now
        if heat > 0.0:
            total = 0.0
            for p in range(low, high + 1):
                total += math.exp((least - value[p - low]) / heat)
            mark = total * below(random, 1 << 30) / (1 << 30)
            for p in range(low, high + 1):
                mark -= math.exp((least - value[p - low]) / heat)
                if mark < 0.0:
                    picked = p
                    break
        else:
            for p in range(low, high + 1):
                if value[p - low] < value[picked - low]:
                    picked = p
        state[0] += cost[kind, picked] - cost[kind, now]
        state[1] = finish[picked - low]
        option[node], duration[node] = picked, time[kind, picked]
        row = end[node] if forward else rest[node]
        other = start if forward else after
        for k in range(samples):
            row[k] = other[k] + duration[node] * factor[node, k]


class Sweeping:
    """A plan with a clock of its own for every computation, drawn anew: see search.Walk."""

    def __init__(self, inst: Instance, safe: Options, latest: float) -> None:
        self._inst, self._latest = inst, latest
        network = inst.network
        self._times = Timetable.of(network, inst.factor, inst.problem.confidence)
        full = [len(clocks) - 1 for clocks in inst.kind_clocks]
        self._free = (
            safe.astype(np.int64),
            network.kind,
            np.array(full, dtype=np.int64),
            inst.kind_time,
            inst.kind_cost,
        )
        self.best, self.best_value = safe, inst.total_cost(safe)
        self._state = np.zeros(2)
        self._random = np.array([_SEED ^ inst.problem.seed], dtype=np.uint64)
        self._forward = 1

    @property
    def late(self) -> bool:
        return bool(self._state[1] > self._latest)

    def steps(self) -> int:
        n, samples = self._inst.factor.shape
        return int(min(max(_WORK / (n * samples), _FEWEST), _MOST))

    def begin(self, option: Options) -> None:
        self._free[0][:] = option
        self._state[0] = self._inst.total_cost(option)
        self._state[1] = self._times.set(self._inst.durations(option))
        self._keep()

    def go(self, steps: int, late_price: float, early_price: float, heat: float) -> None:
        times = self._times
        rules = np.array([self._latest, late_price, early_price, 0.0, times.confidence])
        for _ in range(steps):
            changing = (rules, self._state, self._random)
            _sweep(times.layout, times.times, self._free, *changing, heat, self._forward)
            self._forward = 1 - self._forward
            self._keep()

    def _keep(self) -> None:
        if not self.late and self._state[0] < self.best_value:
            option = self._free[0].astype(np.intp)
            value = self._inst.total_cost(option)
            if value < self.best_value:
                self.best, self.best_value = option, value
