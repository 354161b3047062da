"""When everything starts and ends in every sample, kept up to date while a plan changes.

For n computations and K samples: `end[i]`, when i ends at the earliest, and `rest[i]`, how long the
iteration lasts from the start of i at the least. Nodes are numbered in topological order, so every
path crosses from nodes ≤ p to nodes > p over one edge, and for any p

    makespan = max over edges u → v with u ≤ p < v of  end[u] + lag(u, v) + rest[v].

A change of durations between nodes a and b (numbers) therefore needs new ends of a … b only, and
then the edges that cross b. Node n stands for the iteration's start and end: end[n] = rest[n] = 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perseusd.core.planner.network import Network
from perseusd.core.planner.timetable_kernels import keep_change, statistic, time_all, try_change

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

Layout = tuple[Ints, Ints, Floats, Ints, Ints, Floats, Ints, Ints, Ints, Floats]
Times = tuple[Floats, Floats, Floats, Floats, Floats, Floats, Floats, Floats, Ints, Ints]


def layout_of(network: Network) -> Layout:
    """What precedes, follows and crosses every node, as the kernels read it.

    (n + 1,) first, (e,) node and lag of what precedes each node; the same of what follows; and of
    the edges that cross it, (n + 1,) first, tails, heads, lags, the iteration's start and end
    included.
    """
    n = len(network)
    begins = np.flatnonzero(np.diff(network.into_first) == 0)
    ends = np.flatnonzero(np.diff(network.from_first) == 0)
    tail = np.concatenate([network.tail, np.full(len(begins), n), ends])
    head = np.concatenate([network.head, begins, np.full(len(ends), n)])
    lag = np.concatenate([network.lag, np.zeros(len(begins) + len(ends))])
    since = np.where(tail == n, 0, tail)
    crossed = head - since  # an edge crosses nodes tail … head − 1
    crossed[tail == n] = head[tail == n]
    node = np.repeat(since - np.cumsum(crossed) + crossed, crossed) + np.arange(crossed.sum())
    order = np.argsort(node, kind="stable")
    edge = np.repeat(np.arange(len(tail)), crossed)[order]
    first = np.zeros(n + 1, dtype=np.int64)
    np.cumsum(np.bincount(node, minlength=n), out=first[1:])
    return (
        network.into_first,
        network.tail[network.into_edge],
        network.lag[network.into_edge],
        network.from_first,
        network.head[network.from_edge],
        network.lag[network.from_edge],
        first,
        tail[edge].astype(np.int64),
        head[edge].astype(np.int64),
        lag[edge],
    )


@dataclass(frozen=True)
class Timetable:
    """Ends and rests of a plan in all samples; changed in place by kernels.

    confidence: the share of samples whose makespan counts, or −1 for the mean.
    """

    layout: Layout
    times: Times
    confidence: float

    @classmethod
    def of(cls, network: Network, factor: Floats, confidence: float | None) -> Timetable:
        n, samples = factor.shape
        rows = (n + 1, samples)
        times = (
            np.ascontiguousarray(factor),
            np.zeros(rows),
            np.zeros(rows),
            np.zeros(rows),
            np.zeros(n),
            np.zeros(n),
            np.zeros(samples),
            np.zeros(samples),
            np.zeros(n, dtype=np.int64),
            np.zeros(n + 2, dtype=np.int64),
        )
        return cls(layout_of(network), times, -1.0 if confidence is None else confidence)

    def set(self, durations: Floats) -> float:
        """Time (n,) durations from scratch; the iteration time that counts."""
        self.times[4][:] = durations
        time_all(self.layout, self.times)
        return statistic(self.times[6], self.confidence)

    def tried(self, nodes: Ints, durations: Floats) -> float:
        """The iteration time with new durations of some nodes, which are not kept."""
        self._propose(nodes, durations)
        return statistic(self.times[7], self.confidence)

    def change(self, nodes: Ints, durations: Floats) -> float:
        """The same, and keep them."""
        self._propose(nodes, durations)
        keep_change(self.layout, self.times, int(nodes.min()), int(nodes.max()))
        return statistic(self.times[6], self.confidence)

    def _propose(self, nodes: Ints, durations: Floats) -> None:
        wanted, changed, touched = self.times[5], self.times[8], self.times[9]
        touched[-1] += 1
        wanted[nodes], changed[nodes] = durations, touched[-1]
        try_change(self.layout, self.times, int(nodes.min()), int(nodes.max()))
