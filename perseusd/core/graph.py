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
        placed = [(c, r, i) for r, o in enumerate(pipeline.orders) for i, c in enumerate(o)]
        index = {c: k for k, (c, _, _) in enumerate(placed)}
        edges = list(_precedences(pipeline, index))
        level = _levels([c for c, _, _ in placed], edges)
        numbering = sorted(range(len(placed)), key=lambda k: (level[k], placed[k][1], k))
        number = {old: new for new, old in enumerate(numbering)}

        self.nodes: tuple[Computation, ...] = tuple(placed[k][0] for k in numbering)
        self.rank: Ints = np.array([placed[k][1] for k in numbering], dtype=np.intp)
        self.position: Ints = np.array([placed[k][2] for k in numbering], dtype=np.intp)
        self.kinds: tuple[Kind, ...] = tuple(sorted({c.kind for c in self.nodes}))
        of_kind = {kind: k for k, kind in enumerate(self.kinds)}
        self.kind_index: Ints = np.array([of_kind[c.kind] for c in self.nodes], dtype=np.intp)
        self.tail: Ints = np.array([number[a] for a, _, _ in edges], dtype=np.intp)
        self.head: Ints = np.array([number[b] for _, b, _ in edges], dtype=np.intp)
        self.lag: Floats = np.array([lag for _, _, lag in edges], dtype=np.float64)
        self.ranks = pipeline.ranks
        #: per rank, its nodes in execution order
        self.order: tuple[Ints, ...] = tuple(
            np.array([number[index[c]] for c in order], dtype=np.intp) for order in pipeline.orders
        )
        #: per node, the edges that leave it and those that enter it
        self.edges_from = _by_node(self.tail, len(placed))
        self.edges_into = _by_node(self.head, len(placed))
        self._number = {c: k for k, c in enumerate(self.nodes)}
        sizes = np.bincount(level) if level else np.zeros(0, dtype=np.intp)
        bounds = [0, *np.cumsum(sizes).tolist()]
        self._forward = tuple(_pack(bounds, self.head, self.tail, self.lag, len(self)))
        self._backward = tuple(_pack(bounds, self.tail, self.head, self.lag, len(self)))[::-1]

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
        if not len(self):
            return []
        end = self._earliest_ends(durations)
        path = [int(np.argmax(end[:-1]))]
        tie = _TIE * max(1.0, float(end.max()))
        while True:
            start = float(end[path[-1]] - durations[path[-1]])
            before = self._critical_predecessor(path[-1], start, end, tie)
            if before is None:
                return path[::-1]
            path.append(before)

    def _critical_predecessor(self, node: int, start: float, end: Floats, tie: float) -> int | None:
        edges = self.edges_into[node]
        reach = [(float(end[self.tail[e]] + self.lag[e]), int(self.tail[e])) for e in edges]
        latest = max(reach, default=None)
        return latest[1] if latest is not None and latest[0] >= start - tie else None

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


def _precedences(
    pipeline: Pipeline, index: dict[Computation, int]
) -> Iterator[tuple[int, int, float]]:
    for order in pipeline.orders:
        for before, after in itertools.pairwise(order):
            yield index[before], index[after], 0.0
    for edge in pipeline.edges:
        for computation in (edge.before, edge.after):
            if computation not in index:
                raise PlanningError(f"an edge names {computation}, which is in no rank's order")
        yield index[edge.before], index[edge.after], edge.lag_s


def _levels(nodes: Sequence[Computation], edges: Sequence[tuple[int, int, float]]) -> list[int]:
    """Most edges on any way to each node; raises where there is a cycle."""
    after: list[list[int]] = [[] for _ in nodes]
    waiting = [0] * len(nodes)
    for tail, head, _ in edges:
        after[tail].append(head)
        waiting[head] += 1
    level = [0] * len(nodes)
    ready = deque(k for k, count in enumerate(waiting) if not count)
    done = 0
    while ready:
        node = ready.popleft()
        done += 1
        for head in after[node]:
            level[head] = max(level[head], level[node] + 1)
            waiting[head] -= 1
            if not waiting[head]:
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


def _pack(
    bounds: Sequence[int], node: Ints, neighbour: Ints, lag: Floats, neutral: int
) -> Iterator[_Level]:
    """Per level, the neighbours along the edges (node ← neighbour), padded with `neutral`."""
    slots: list[list[tuple[int, float]]] = [[] for _ in range(neutral)]
    for n, o, d in zip(node.tolist(), neighbour.tolist(), lag.tolist(), strict=True):
        slots[n].append((o, d))
    for first, last in itertools.pairwise(bounds):
        rows = slots[first:last]
        width = max(1, *(len(row) for row in rows)) if rows else 1
        padded = [row + [(neutral, 0.0)] * (width - len(row)) for row in rows]
        others = tuple(np.array([r[j][0] for r in padded], dtype=np.intp) for j in range(width))
        lags = tuple(np.array([r[j][1] for r in padded]) for j in range(width))
        yield _Level(first, last, others, tuple(a if a.any() else None for a in lags))
