"""The precedence graph as flat arrays, which is what kernels work on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perseusd.core.graph import Graph

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Network:
    """n nodes in topological order (level by level), e edges, R ranks; all integers are int64.

    tail, head: (e,) nodes.  lag: (e,) seconds.
    into_first: (n + 1,) and into_edge: (e,): the edges that enter node i are
        into_edge[into_first[i] : into_first[i + 1]]; from_first and from_edge: those that leave it.
    rank_first: (R + 1,) and rank_node: (n,): rank r's nodes in execution order.
    rank, position: (n,) each node's rank and its place in that rank's order.
    kind: (n,) index into the graph's kinds.
    """

    tail: Ints
    head: Ints
    lag: Floats
    into_first: Ints
    into_edge: Ints
    from_first: Ints
    from_edge: Ints
    rank_first: Ints
    rank_node: Ints
    rank: Ints
    position: Ints
    kind: Ints

    @classmethod
    def of(cls, graph: Graph) -> Network:
        n = len(graph)
        into_first, into_edge = _by_node(graph.head, n)
        from_first, from_edge = _by_node(graph.tail, n)
        lengths = [len(nodes) for nodes in graph.order]
        return cls(
            tail=graph.tail.astype(np.int64),
            head=graph.head.astype(np.int64),
            lag=graph.lag,
            into_first=into_first,
            into_edge=into_edge,
            from_first=from_first,
            from_edge=from_edge,
            rank_first=np.cumsum([0, *lengths], dtype=np.int64),
            rank_node=np.concatenate(graph.order).astype(np.int64),
            rank=graph.rank.astype(np.int64),
            position=graph.position.astype(np.int64),
            kind=graph.kind_index.astype(np.int64),
        )

    def __len__(self) -> int:
        return len(self.kind)


def _by_node(node: NDArray[np.intp], n: int) -> tuple[Ints, Ints]:
    """(n + 1,) where each node's edges begin, (e,) the edges node by node."""
    first = np.zeros(n + 1, dtype=np.int64)
    np.cumsum(np.bincount(node, minlength=n), out=first[1:])
    return first, np.argsort(node, kind="stable").astype(np.int64)
