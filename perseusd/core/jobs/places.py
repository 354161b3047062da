"""Where the computations of an iteration stand in arrays: rank by rank, each in its order."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from perseusd.core.graph import Graph
from perseusd.core.learned.knowledge import GpuFacts
from perseusd.core.model import Pipeline


class Places:
    """kinds: ascending. Arrays (n,), one of each computation:

    node: its number in the graph; rank; kind: which of the kinds; top_mhz: of its GPU.
    """

    def __init__(self, pipeline: Pipeline, graph: Graph, gpus: Mapping[int, GpuFacts]) -> None:
        self.computations = tuple(itertools.chain.from_iterable(pipeline.orders))
        self.kinds = graph.kinds
        self.node = np.concatenate(graph.order)
        self.rank, self.kind = graph.rank[self.node], graph.kind_index[self.node]
        tops = np.array([gpus[rank].top_mhz for rank in range(pipeline.ranks)])
        self.top_mhz = tops[self.rank]
        ends = np.cumsum([len(order) for order in pipeline.orders]).tolist()
        #: per rank, its computations
        self.own = [slice(a, b) for a, b in itertools.pairwise([0, *ends])]
        #: per rank, its kinds' computations, those first that come first
        self.of_kinds = [
            [first + np.flatnonzero(kind == k) for k in dict.fromkeys(kind.tolist())]
            for first, kind in ((own.start, self.kind[own]) for own in self.own)
        ]
