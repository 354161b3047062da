"""What a window of lower clocks costs, and that the best one is free where it can be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perseusd.core.graph import Graph
from perseusd.core.model import Computation, Kind
from perseusd.core.schedules import one_f_one_b, pipeline
from perseusd.core.trials.windows import Rank, best_window

CLOCKS = (1200, 900)
RATIO = {1200: 1.15, 900: 1.5}


@dataclass
class Same:
    """Points that are all worth the same: windows are chosen by what they cost and hold."""

    kinds: tuple[Kind, ...]
    top_s: dict[Kind, float]

    def __post_init__(self) -> None:
        pairs = [(kind, clock) for kind in self.kinds for clock in CLOCKS]
        self.index = {pair: i for i, pair in enumerate(pairs)}
        self.seconds = np.array([self.top_s[k] * RATIO[c] for k, c in pairs])
        self.cautious_s = self.seconds

    def gains(self, point: np.ndarray, most: int) -> np.ndarray:
        return np.repeat(np.arange(most + 1.0)[None, :] ** 0.5, len(point), axis=0)


def school(scales: list[float], microbatches: int) -> tuple[Graph, np.ndarray, dict[Kind, float]]:
    graph = Graph.from_pipeline(pipeline(one_f_one_b(len(scales), microbatches), 0.001))
    top_s = {
        kind: (0.05 if kind.instruction == "forward" else 0.1) * scales[kind.rank]
        for kind in graph.kinds
    }
    return graph, np.array([top_s[node.kind] for node in graph.nodes]), top_s


@given(
    st.lists(st.floats(0.6, 1.0), min_size=2, max_size=4),
    st.integers(2, 6),
    st.floats(0, 0.05),
)
def test_a_window_never_costs_more_than_it_says(
    scales: list[float], microbatches: int, share: float
) -> None:
    """The graph's own longest path with the window is no longer than predicted, nor than allowed;
    at that, free windows are found wherever a rank has slack."""
    graph, durations, top_s = school(scales, microbatches)
    makespan = float(graph.makespan(durations))
    slack = graph.slack(durations, makespan)
    for nodes in graph.order:
        order: list[Computation] = [graph.nodes[node] for node in nodes]
        counted = Rank(order)
        points = Same(counted.kinds, top_s)
        found = best_window(
            counted, CLOCKS, [None] * len(order), points, durations[nodes], slack[nodes],  # type: ignore[arg-type]  # what it uses of Points
            share * makespan, 0,
        )  # fmt: skip
        if found is None:
            room = slack[nodes] + share * makespan
            pairs = zip(order, room, strict=True)
            alone = [
                r for c, r in pairs if c.instruction == "backward" and r > 0.151 * top_s[c.kind]
            ]
            assert not alone  # one backward at the higher clock would have been a window
            continue
        assert found.cost <= share * makespan + 1e-9
        trial = durations.copy()
        window = found.window
        for node in nodes[window.start : window.stop]:
            trial[node] = top_s[graph.nodes[node].kind] * RATIO[window.clock_mhz]
        assert float(graph.makespan(trial)) <= makespan + found.cost + 1e-9


@pytest.mark.parametrize("taken", [0, 3, 7])
def test_a_window_keeps_off_those_chosen_before(taken: int) -> None:
    """At least one computation at full clock between two windows."""
    graph, durations, top_s = school([1.0, 0.6], 4)
    nodes = graph.order[1]
    order = [graph.nodes[node] for node in nodes]
    clocks: list[int | None] = [None] * len(order)
    clocks[taken] = 900
    counted = Rank(order)
    points = Same(counted.kinds, top_s)
    found = best_window(
        counted, CLOCKS, clocks, points, durations[nodes], np.full(len(order), 1.0), 1.0, 0  # type: ignore[arg-type]  # what it uses of Points
    )  # fmt: skip
    assert found is not None
    assert not found.window.start - 1 <= taken <= found.window.stop
