"""The precedence graph of one iteration: longest paths, slack, critical path.

Nodes are computations; an edge says that its head starts no sooner than its tail's end plus a lag.
Nodes are numbered level by level (a node's level is the most edges on any way to it), so that all
nodes of a level, over all samples at once, are timed by a few array operations.

Shapes: n nodes, K samples. Durations are (n,) or (n, K), and so are the answers.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from perseusd.core.model import Computation, Kind, Pipeline
from perseusd.errors import PlanningError

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

_TIE = 1e-9  # relative: a node whose slack is below this share of the makespan is critical


@dataclass(frozen=True)
class _Level:
    """Nodes first to last (exclusive) with their padded neighbours, for one direction.

    neighbours, lags: one array per neighbour slot, each (last − first, …); an absent neighbour is
        node n, whose time is the neutral one, with lag 0.
    """

    first: int
    last: int
    neighbours: tuple[Ints, ...]
    lags: tuple[Floats | None, ...]


class Graph:
    """The precedence graph of a pipeline.

    nodes: computations in topological order; node numbers index all arrays.
    rank, position: (n,) the node's rank and its position in that rank's order.
    kinds, kind_index: the kinds there are, and (n,) each node's index among them.
    tail, head, lag: (edges,) all precedences, the order on each rank included.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        placed = list(itertools.chain.from_iterable(pipeline.orders))
        lengths = np.array([len(order) for order in pipeline.orders], dtype=np.intp)
        first, n = np.append(0, np.cumsum(lengths)), len(placed)
        place = dict(zip(placed, range(n), strict=True))
        tail, head, lag = _precedences(pipeline, place)
        level = np.array(_levels(placed, tail, head), dtype=np.intp)
        rank = np.repeat(np.arange(len(lengths)), lengths)
        numbering = np.lexsort((rank, level))  # stable: of one rank's the first comes first
        number = np.empty(n, dtype=np.intp)
        number[numbering] = np.arange(n)

        self.nodes: tuple[Computation, ...] = tuple(placed[k] for k in numbering.tolist())
        self.rank: Ints = rank[numbering]
        self.position: Ints = (np.arange(n) - np.repeat(first[:-1], lengths))[numbering]
        self.kinds, self.kind_index = _kinds(self.nodes)
        self.tail: Ints = number[tail]
        self.head: Ints = number[head]
        self.lag: Floats = np.array(lag, dtype=np.float64)
        self.ranks = pipeline.ranks
        #: per rank, its nodes in execution order
        self.order: tuple[Ints, ...] = tuple(
            number[begin:end] for begin, end in itertools.pairwise(first.tolist())
        )
        self._number = dict(zip(placed, number.tolist(), strict=True))
        self._level_sizes: Ints = np.bincount(level)

    @classmethod
    def from_pipeline(cls, pipeline: Pipeline) -> Graph:
        """Raises PlanningError, naming the computations, when the dependencies form a cycle."""
        return cls(pipeline)

    def __len__(self) -> int:
        return len(self.nodes)

    def node_of(self, computation: Computation) -> int:
        """The node's number. Raises PlanningError when the pipeline has no such computation."""
        try:
            return self._number[computation]
        except KeyError:
            raise PlanningError(f"{computation} is not in this pipeline") from None

    def earliest(self, durations: Floats) -> Floats:
        """Earliest start times, the iteration starting at 0. Shape as `durations`."""
        end = self._earliest_ends(durations)
        return end[:-1] - durations

    def ends(self, durations: Floats) -> Floats:
        """Earliest ends. Shape as `durations`."""
        return self._earliest_ends(durations)[:-1]

    def makespan(self, durations: Floats) -> Floats:
        """Time from the iteration's start to its last end: () for (n,), (K,) for (n, K)."""
        ends: Floats = self._earliest_ends(durations).max(axis=0)
        return ends

    def latest(self, durations: Floats, deadline: float | Floats) -> Floats:
        """Latest start times at which everything still ends by `deadline` (() or (K,))."""
        start = np.empty((len(self) + 1, *durations.shape[1:]))
        start[-1] = deadline
        for level in self._backward:
            end = start[level.neighbours[0]]
            if level.lags[0] is not None:
                end -= _column(level.lags[0], end)
            for other, lag in zip(level.neighbours[1:], level.lags[1:], strict=True):
                bound = start[other]
                if lag is not None:
                    bound -= _column(lag, bound)
                np.minimum(end, bound, out=end)
            # What has no successor is held by the deadline itself: slot 0 is then node n.
            start[level.first : level.last] = end - durations[level.first : level.last]
        return start[:-1]

    def slack(self, durations: Floats, deadline: float | Floats | None = None) -> Floats:
        """How much later each node may start without ending after `deadline` (the makespan)."""
        limit = self.makespan(durations) if deadline is None else deadline
        return self.latest(durations, limit) - self.earliest(durations)

    def critical_path(self, durations: Floats) -> list[Computation]:
        """One longest path, first computation first. `durations` is (n,)."""
        return [self.nodes[k] for k in self.critical_nodes(durations)]

    def critical_nodes(self, durations: Floats) -> list[int]:
        """The node numbers of one longest path, first node first. `durations` is (n,)."""
        return self.longest_path(durations, self.ends(durations))

    def longest_path(self, durations: Floats, ends: Floats) -> list[int]:
        """As `critical_nodes`, where `ends` of these durations are known."""
        if not len(self):
            return []
        starts, end = (ends - durations).tolist(), ends.tolist()
        path = [int(np.argmax(ends))]
        tie = _TIE * max(1.0, max(end))
        while True:
            latest = max(
                ((end[tail] + lag, tail) for tail, lag in self._before[path[-1]]), default=None
            )
            if latest is None or latest[0] < starts[path[-1]] - tie:
                return path[::-1]
            path.append(latest[1])

    @cached_property
    def _before(self) -> tuple[tuple[tuple[int, float], ...], ...]:
        """Per node, (tail, lag) of the edges that enter it."""
        tail, lag = self.tail.tolist(), self.lag.tolist()
        return tuple(tuple((tail[e], lag[e]) for e in edges) for edges in self.edges_into)

    @cached_property
    def edges_into(self) -> tuple[tuple[int, ...], ...]:
        """Per node, the edges that enter it."""
        return _by_node(self.head, len(self))

    @cached_property
    def _forward(self) -> tuple[_Level, ...]:
        return tuple(_pack(self._level_sizes, self.head, self.tail, self.lag))

    @cached_property
    def _backward(self) -> tuple[_Level, ...]:
        return tuple(_pack(self._level_sizes, self.tail, self.head, self.lag))[::-1]

    def _earliest_ends(self, durations: Floats) -> Floats:
        """(n + 1, …): ends of all nodes, then the neutral node's: 0."""
        end = np.empty((len(self) + 1, *durations.shape[1:]))
        end[-1] = 0.0
        for level in self._forward:
            start = end[level.neighbours[0]]
            if level.lags[0] is not None:
                start += _column(level.lags[0], start)
            for other, lag in zip(level.neighbours[1:], level.lags[1:], strict=True):
                bound = end[other]
                if lag is not None:
                    bound += _column(lag, bound)
                np.maximum(start, bound, out=start)
            start += durations[level.first : level.last]
            end[level.first : level.last] = start
        return end


def _by_node(node: Ints, count: int) -> tuple[tuple[int, ...], ...]:
    found: list[list[int]] = [[] for _ in range(count)]
    for edge, k in enumerate(node.tolist()):
        found[k].append(edge)
    return tuple(map(tuple, found))


def _column(lags: Floats, like: Floats) -> Floats:
    return lags if like.ndim == 1 else lags[:, None]


def _kinds(nodes: Sequence[Computation]) -> tuple[tuple[Kind, ...], Ints]:
    """The kinds there are, in order, and each node's index among them."""
    seen: dict[tuple[int, int, str], int] = {}
    index = [seen.setdefault(node[:3], len(seen)) for node in nodes]  # rank, chunk, instruction
    kinds = sorted(seen)
    sorted_index = np.empty(len(kinds), dtype=np.intp)
    sorted_index[[seen[kind] for kind in kinds]] = np.arange(len(kinds))
    return tuple(Kind(*kind) for kind in kinds), sorted_index[index]


def _precedences(
    pipeline: Pipeline, place: dict[Computation, int]
) -> tuple[list[int], list[int], list[float]]:
    """Tails, heads and lags of all edges, as places."""
    tail: list[int] = []
    head: list[int] = []
    first = 0
    for order in pipeline.orders:
        tail += range(first, first + len(order) - 1)
        head += range(first + 1, first + len(order))
        first += len(order)
    lag = [0.0] * len(tail)
    try:
        for before, after, lag_s in pipeline.edges:
            tail.append(place[before])
            head.append(place[after])
            lag.append(lag_s)
    except KeyError as error:
        stranger = error.args[0]
        raise PlanningError(f"an edge names {stranger}, which is in no rank's order") from None
    return tail, head, lag


def _levels(nodes: Sequence[Computation], tails: list[int], heads: list[int]) -> list[int]:
    """Most edges on any way to each node; raises where there is a cycle."""
    after: list[list[int]] = [[] for _ in nodes]
    waiting = [0] * len(nodes)
    for tail, head in zip(tails, heads, strict=True):
        after[tail].append(head)
        waiting[head] += 1
    level = [0] * len(nodes)
    # First come, first served: whoever makes a node ready is the latest of those before it.
    ready = deque(k for k, count in enumerate(waiting) if not count)
    done = 0
    while ready:
        node = ready.popleft()
        done += 1
        for head in after[node]:
            waiting[head] -= 1
            if not waiting[head]:
                level[head] = level[node] + 1
                ready.append(head)
    if done < len(nodes):
        raise PlanningError(_describe_cycle(nodes, after, waiting))
    return level


def _describe_cycle(
    nodes: Sequence[Computation], after: Sequence[Sequence[int]], waiting: Sequence[int]
) -> str:
    """Name one cycle among the nodes still waiting: each of them waits for another of them."""
    before = {h: t for t, heads in enumerate(after) if waiting[t] for h in heads if waiting[h]}
    node = next(k for k, count in enumerate(waiting) if count)
    seen: list[int] = []
    while node not in seen:
        seen.append(node)
        node = before[node]
    cycle = [*seen[seen.index(node) :], node][::-1]
    names = " → ".join(
        f"{c.instruction}({c.microbatch}) on rank {c.rank} chunk {c.chunk}"
        for c in (nodes[k] for k in cycle)
    )
    return f"the dependencies form a cycle: {names}; no order of execution can satisfy them"


def _pack(sizes: Ints, node: Ints, neighbour: Ints, lag: Floats) -> Iterator[_Level]:
    """Per level, the neighbours along the edges (node ← neighbour), padded with the neutral node.

    sizes: (levels,) nodes of each.
    """
    n = int(sizes.sum())
    bounds = np.append(0, np.cumsum(sizes))
    count = np.bincount(node, minlength=n)
    order = np.argsort(node, kind="stable")
    slot = np.arange(len(node)) - (np.cumsum(count) - count)[node[order]]
    width = np.maximum(1, np.maximum.reduceat(count, bounds[:-1])) if n else sizes
    block = np.append(0, np.cumsum(width * sizes))
    level = np.repeat(np.arange(len(sizes)), sizes)[node[order]]
    # Level by level, slot by slot, node by node.
    cell = block[level] + slot * sizes[level] + node[order] - bounds[level]
    others = np.full(block[-1], n, dtype=np.intp)
    others[cell] = neighbour[order]
    lags = np.zeros(block[-1])
    lags[cell] = lag[order]
    lagging = bool(lag.any())
    slots = zip(bounds.tolist(), sizes.tolist(), width.tolist(), block.tolist(), strict=False)
    for first, size, wide, begin in slots:
        cuts = [slice(begin + j * size, begin + (j + 1) * size) for j in range(wide)]
        yield _Level(
            first,
            first + size,
            tuple(others[cut] for cut in cuts),
            tuple(lags[cut] if lagging and lags[cut].any() else None for cut in cuts),
        )
