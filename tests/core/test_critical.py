"""The critical path as observed: against paths found by trying all, and what slack promises."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from perseusd.core.critical import (
    KEPT,
    CriticalPath,
    ReplicaPaths,
    observed_path,
    slack_of_ranks,
)
from perseusd.core.graph import Graph
from perseusd.core.schedules import gpipe, one_f_one_b, pipeline

LAG_S = 0.001


def graph_of(stages: int, microbatches: int, lag_s: float = LAG_S) -> Graph:
    return Graph(pipeline(one_f_one_b(stages, microbatches), lag_s))


def durations(graph: Graph, scale: dict[int, float], noise: float = 0.0) -> NDArray[np.float64]:
    """Forward 1 s, backward 2 s, times the rank's scale, times noise of a fixed seed."""
    random = np.random.default_rng(3)
    plain = [
        (1.0 if node.instruction == "forward" else 2.0) * scale.get(node.rank, 1.0)
        for node in graph.nodes
    ]
    return np.array(plain) * random.lognormal(0, noise, len(plain))


def all_paths(graph: Graph) -> list[list[int]]:
    """Every path through the graph, by trying all."""
    after: dict[int, list[int]] = {k: [] for k in range(len(graph))}
    for tail, head in zip(graph.tail.tolist(), graph.head.tolist(), strict=True):
        after[tail].append(head)

    def extended(path: list[int]) -> list[list[int]]:
        further = [p for head in after[path[-1]] for p in extended([*path, head])]
        return further or [path]

    first = set(range(len(graph))) - set(graph.head.tolist())
    return list(itertools.chain.from_iterable(extended([node]) for node in sorted(first)))


@pytest.mark.parametrize("slow", [0, 1, 2])
def test_the_path_is_the_longest_of_all(slow: int) -> None:
    """Found by one pass over the graph, it is as long as the longest that trying all finds, lags
    included, and its seconds per rank are its computations'."""
    graph = graph_of(3, 3)
    seconds = durations(graph, {slow: 1.5}, noise=0.1)
    lag = dict(zip(zip(graph.tail.tolist(), graph.head.tolist()), graph.lag.tolist()))  # noqa: B905
    lengths = [
        sum(seconds[p]) + sum(lag[pair] for pair in itertools.pairwise(p)) for p in all_paths(graph)
    ]
    path = observed_path(graph, seconds)
    assert path.length_s == pytest.approx(max(lengths))
    assert path.seconds.sum() == pytest.approx(seconds[list(path.nodes)].sum())
    assert path.shares.sum() == pytest.approx(1)


def test_the_slow_stage_has_the_path() -> None:
    """With one stage half as slow again, nearly all of the path's time is there."""
    graph = graph_of(4, 32)
    path = observed_path(graph, durations(graph, {2: 1.5}, noise=0.01))
    assert path.shares[2] > 0.9
    assert int(np.argmax(path.shares)) == 2


@pytest.mark.parametrize("schedule", [one_f_one_b, gpipe])
def test_slack_is_what_can_be_added_and_not_more(schedule: object) -> None:
    """Evenly stretching a stage's computations off the path by its slack leaves the iteration as
    long as it was; a hundredth more makes it longer."""
    graph = Graph(pipeline(schedule(4, 8), LAG_S))  # type: ignore[operator]
    seconds = durations(graph, {1: 1.4, 3: 1.2}, noise=0.03)
    path = observed_path(graph, seconds)
    off_path = np.ones(len(graph), dtype=bool)
    off_path[list(path.nodes)] = False
    slack = slack_of_ranks(graph, seconds)
    assert max(slack) > 0.2
    for rank, share in enumerate(slack):
        own = off_path & (graph.rank == rank)
        if not own.any():
            assert share == 0
            continue
        x = share * seconds[graph.order[rank]].sum() / seconds[own].sum()
        within = np.where(own, seconds * (1 + x), seconds)
        beyond = np.where(own, seconds * (1 + x + 0.01), seconds)
        assert graph.makespan(within) == pytest.approx(path.length_s)
        assert graph.makespan(beyond) > path.length_s * (1 + 1e-6)


def test_slack_is_what_is_missing_to_the_slowest_stage() -> None:
    """In a long 1F1B iteration a stage can compute about as much more as the slowest one does."""
    graph = graph_of(4, 64)
    slack = slack_of_ranks(graph, durations(graph, {2: 1.3}))
    assert slack.pop(2) < 0.02
    assert slack == pytest.approx([0.3] * 3, abs=0.03)


def test_a_balanced_pipeline_has_no_slack() -> None:
    """Where all stages are alike, every computation is on some longest path."""
    graph = graph_of(4, 16, lag_s=0)
    assert slack_of_ranks(graph, durations(graph, {})) == pytest.approx([0] * 4, abs=1e-6)


def test_means_follow_a_change() -> None:
    """When another stage becomes the slowest one, the shares follow within some times KEPT."""
    graph = graph_of(4, 8)
    path = CriticalPath(graph)
    assert (path.shares(), path.slack()) == ([], ())
    for _ in range(3):
        path.add(durations(graph, {0: 1.5}))
    assert path.shares()[0][0] == 0
    for _ in range(3 * KEPT):
        path.add(durations(graph, {3: 1.5}))
    assert path.shares()[0][0] == 3
    assert path.slack()[3] < min(path.slack()[:3])
    assert sum(share for _, share in path.shares()) == pytest.approx(1)


def test_the_slowest_replica_has_the_path() -> None:
    """All replicas wait for the slowest, so the time is where it spends it; equal ones share."""
    graph = graph_of(2, 4)
    healthy = observed_path(graph, durations(graph, {}))
    slow = observed_path(graph, durations(graph, {1: 2.0}))
    paths = ReplicaPaths()
    assert paths.add({0: healthy, 1: slow}) == 1
    assert paths.add({0: healthy, 1: slow}) == 1
    assert {replica for (replica, _), _ in paths.shares()} == {1}
    assert paths.shares()[0][0] == (1, 1)
    assert paths.add({0: slow, 1: healthy}) == 0
    assert sum(share for _, share in paths.shares()) == pytest.approx(1)


def test_an_empty_graph_and_no_time_are_no_errors() -> None:
    """Computations that took no time at all have no shares, rather than a division by zero."""
    graph = graph_of(2, 2, lag_s=0)
    path = observed_path(graph, np.zeros(len(graph)))
    assert path.length_s == 0
    assert path.shares.tolist() == [0, 0]
    assert slack_of_ranks(graph, np.zeros(len(graph))) == [0, 0]
