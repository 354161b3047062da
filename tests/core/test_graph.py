"""Longest paths against the most naive computation of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perseusd.core.graph import Graph
from perseusd.core.model import Computation, Edge, Pipeline
from perseusd.core.schedules import one_f_one_b, pipeline
from perseusd.errors import PlanningError


@st.composite
def pipelines(draw: st.DrawFn) -> Pipeline:
    """Random acyclic dependencies: every edge goes forward in one order of all computations."""
    ranks = draw(st.lists(st.integers(0, 3), min_size=1, max_size=14))
    nodes = [Computation(rank, 0, "other", m) for m, rank in enumerate(ranks)]
    pairs = [(a, b) for i, a in enumerate(nodes) for b in nodes[i + 1 :] if a.rank != b.rank]
    chosen = draw(st.lists(st.sampled_from(pairs), max_size=12, unique=True)) if pairs else []
    lags = [draw(st.sampled_from([0.0, 0.0, 0.5, 2.0])) for _ in chosen]
    orders = tuple(tuple(n for n in nodes if n.rank == r) for r in range(4))
    edges = tuple(Edge(a, b, lag) for (a, b), lag in zip(chosen, lags, strict=True))
    return Pipeline(orders, edges)


def naive_ends(built: Pipeline, seconds: dict[Computation, float]) -> dict[Computation, float]:
    before: dict[Computation, list[tuple[Computation, float]]] = {c: [] for c in seconds}
    for order in built.orders:
        for a, b in itertools.pairwise(order):
            before[b].append((a, 0.0))
    for edge in built.edges:
        before[edge.after].append((edge.before, edge.lag_s))
    ends: dict[Computation, float] = {}

    def end(c: Computation) -> float:
        if c not in ends:
            ends[c] = max([0.0, *(end(a) + lag for a, lag in before[c])]) + seconds[c]
        return ends[c]

    for c in seconds:
        end(c)
    return ends


@given(pipelines(), st.integers(0, 2**32 - 1))
def test_times_agree_with_the_naive_longest_path(built: Pipeline, seed: int) -> None:
    """Starts, makespan, slack and critical path, for one and for several samples at once."""
    graph = Graph.from_pipeline(built)
    durations = np.random.default_rng(seed).uniform(0.1, 3.0, (len(graph), 3))
    starts = graph.earliest(durations)
    for k in range(3):
        seconds = {c: float(durations[graph.node_of(c), k]) for c in graph.nodes}
        ends = naive_ends(built, seconds)
        got = starts[:, k] + durations[:, k]
        assert got == pytest.approx([ends[c] for c in graph.nodes])
        assert float(graph.makespan(durations)[k]) == pytest.approx(max(ends.values()))
        path = graph.critical_path(durations[:, k])
        slack = graph.slack(durations[:, k])
        assert slack.min() >= -1e-9
        assert [slack[graph.node_of(c)] for c in path] == pytest.approx([0.0] * len(path), abs=1e-9)
        assert starts[graph.node_of(path[0]), k] == 0.0
        assert ends[path[-1]] == pytest.approx(max(ends.values()))


@given(pipelines(), st.integers(0, 2**32 - 1))
def test_using_up_ones_slack_delays_nothing(built: Pipeline, seed: int) -> None:
    """Any one computation may take its slack longer and the deadline is still kept."""
    graph = Graph.from_pipeline(built)
    durations = np.random.default_rng(seed).uniform(0.1, 3.0, len(graph))
    deadline = float(graph.makespan(durations)) + 0.7
    slack = graph.slack(durations, deadline)
    for node in range(len(graph)):
        longer = durations.copy()
        longer[node] += slack[node]
        assert float(graph.makespan(longer)) <= deadline + 1e-9


def test_nodes_are_in_topological_order_and_know_their_place() -> None:
    """Every precedence goes from a lower to a higher number; rank and position are the order's."""
    built = pipeline(one_f_one_b(4, 5))
    graph = Graph.from_pipeline(built)
    assert (graph.tail < graph.head).all()
    for node, c in enumerate(graph.nodes):
        assert built.orders[graph.rank[node]][graph.position[node]] == c
        assert graph.kinds[graph.kind_index[node]] == c.kind
        assert graph.node_of(c) == node


def test_a_cycle_is_named() -> None:
    """The error lists the computations that wait for one another, and only those."""
    f = [Computation(r, 0, "forward", m) for r in range(2) for m in range(2)]
    crossed = Pipeline(((f[0], f[1]), (f[2], f[3])), (Edge(f[1], f[2], 0.0), Edge(f[3], f[0], 0.0)))
    with pytest.raises(PlanningError, match=r"cycle: .*forward\(1\) on rank 0"):
        Graph.from_pipeline(crossed)


def test_an_edge_to_a_stranger_is_named() -> None:
    """An edge whose end is in no order is refused; so is asking for such a node."""
    here, stranger = Computation(0, 0, "forward", 0), Computation(1, 0, "forward", 0)
    with pytest.raises(PlanningError, match="in no rank's order"):
        Graph.from_pipeline(Pipeline(((here,),), (Edge(here, stranger, 0.0),)))
    with pytest.raises(PlanningError, match="not in this pipeline"):
        Graph.from_pipeline(Pipeline(((here,),), ())).node_of(stranger)
