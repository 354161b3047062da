"""Windows of one rank's iteration, what they cost, and which is worth most.

A window delays its i-th computation's end by d_i, the sum of what its computations up to i take
longer. A path that leaves the window after i is longer by at most d_i, and was shorter than the
makespan by at least that computation's slack, so the iteration grows by at most
max_i (d_i − slack_i). That is exact where one path holds the whole window, and needs no search of
the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from perseusd.core.model import Computation
from perseusd.core.trials.worth import Points

LENGTHS = (1, 2, 3, 4, 6, 8, 12)

MOST_STARTS = 64
"""Beginnings of windows weighed per rank and iteration; bounds the time spent in the loop."""

SHORTEST_S = 0.05
"""At the lower clock: clock writes land some milliseconds off the boundary."""

FREE_SHARE = 0.1
"""Of the budget: windows cheaper than this are alike, and what they teach decides."""

Array = NDArray[np.float64]


class Window(NamedTuple):
    """Positions [start, stop) of a rank's order at one clock."""

    start: int
    stop: int
    clock_mhz: int


class Found(NamedTuple):
    """The best window, and by how many seconds the iteration grows with it."""

    window: Window
    cost: float


@dataclass
class Rank:
    """One rank's order, counted."""

    order: Sequence[Computation]

    def __post_init__(self) -> None:
        self.kinds = tuple(dict.fromkeys(c.kind for c in self.order))
        place = {kind: i for i, kind in enumerate(self.kinds)}
        self.kind_of = np.array([place[c.kind] for c in self.order], dtype=np.intp)
        one = np.zeros((len(self.order) + 1, len(self.kinds)), dtype=np.intp)
        one[np.arange(1, len(self.order) + 1), self.kind_of] = 1
        #: (positions + 1, kinds) computations of each kind before a position
        self.before = np.cumsum(one, axis=0)


def best_window(
    rank: Rank, clocks: Sequence[int], taken: Sequence[int | None], points: Points,
    durations: Array, slack: Array, budget: float, seed: int,
) -> Found | None:  # fmt: skip
    """durations, slack: (positions,) s. taken: clocks already chosen; windows keep off them."""
    length_of = len(rank.order)
    starts = np.arange(length_of)
    if length_of > MOST_STARTS:
        rng = np.random.default_rng(seed)
        starts = np.sort(rng.choice(length_of, MOST_STARTS, replace=False))
    at = np.array([[points.index[kind, clock] for clock in clocks] for kind in rank.kinds])
    extra = points.cautious_s[at][rank.kind_of] - durations[:, None]  # (positions, clocks)
    seconds = points.seconds[at][rank.kind_of]
    delay = np.vstack([np.zeros((1, len(clocks))), np.cumsum(np.maximum(extra, 0.0), axis=0)])
    spent = np.vstack([np.zeros((1, len(clocks))), np.cumsum(seconds, axis=0)])
    gains = [points.gains(own, max(LENGTHS)) for own in at]
    busy = np.cumsum([0, *(clock is not None for clock in taken)])
    best, best_score = None, 0.0
    over = np.full((length_of, len(clocks)), -np.inf)
    for length in range(1, min(LENGTHS[-1], length_of) + 1):
        begins = starts[: np.searchsorted(starts, length_of - length, side="right")]
        late = delay[begins + length] - delay[begins] - slack[begins + length - 1][:, None]
        np.maximum(over[: len(begins)], late, out=over[: len(begins)])
        if length not in LENGTHS:
            continue
        cost = np.maximum(over[: len(begins)], 0.0)
        counts = rank.before[begins + length] - rank.before[begins]
        worth = sum(gain[:, counts[:, k]].T for k, gain in enumerate(gains))
        score = worth / (FREE_SHARE + cost / max(budget, 1e-12))
        # A window that touches another would be one longer run of two clocks.
        near = busy[np.minimum(begins + length + 1, length_of)] - busy[np.maximum(begins - 1, 0)]
        score[near > 0] = 0.0
        score[(cost > budget + 1e-12) | (spent[begins + length] - spent[begins] < SHORTEST_S)] = 0.0
        i, j = divmod(int(np.argmax(score)), len(clocks))
        if score[i, j] > best_score:
            best_score, begin = float(score[i, j]), int(begins[i])
            best = Found(Window(begin, begin + length, clocks[j]), float(cost[i, j]))
    return best
