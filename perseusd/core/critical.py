"""The critical path as it was observed: which stages an iteration's time came from, and who waited.

An iteration takes as long as its longest path: computations one after another on a rank, and from
rank to rank where one needs what another made. Only durations, order and communication times are
used. Hosts' clocks are never compared, so none need agree.

    share   of the path's computing time, by stage: where the iteration's time is
    slack   how much more a stage could compute in an iteration of the same length, as a share of
            what it computes now

A stage that is nowhere near the bottleneck still has a few computations on the path: in most
schedules the first microbatch passes every stage before the slowest one has anything to do. To
stretch those would be a longer iteration, so slack is what evenly stretching all the *other*
computations of the stage can add: the longest path through stretched ones then just reaches the
iteration's length,

    slack(r) = x · Σ off-path(r) / Σ all(r)
    x = the largest with which the longest path, off-path(r) times 1 + x, is still T

The longest path is convex and piecewise linear in x, so Newton's method from above (Dinkelbach,
1967) ends at the exact x after as many steps as it meets longest paths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from perseusd.core.graph import Graph

Floats = NDArray[np.float64]
_Place = TypeVar("_Place")

KEPT = 20
"""Iterations that shares and slack are a mean over: later ones push out earlier ones."""

_ROUNDING = 1e-9
_NODES_AT_ONCE = 1024
"""Nodes times ranks that one look at the slack of late may cost: a few milliseconds."""

_MOST_STEPS = 60
"""Of Newton's method; each meets another path, and in practice three to six do."""


@dataclass(frozen=True)
class ObservedPath:
    """One iteration's longest path.

    nodes: its computations as numbers in the graph, first to last.
    length_s: from the iteration's start to its last end, communication included.
    seconds: (ranks,) what each rank's computations contribute.
    """

    nodes: tuple[int, ...]
    length_s: float
    seconds: Floats

    @property
    def shares(self) -> Floats:
        """(ranks,) of the path's computing time; they add up to 1."""
        total = float(self.seconds.sum())
        return self.seconds / total if total > 0 else np.zeros_like(self.seconds)


def observed_path(graph: Graph, durations: Floats, ends: Floats | None = None) -> ObservedPath:
    """The longest path of an iteration whose computations took `durations`: (n,), seconds.

    ends: the graph's ends of these durations, where they are known already.
    """
    ends = graph.ends(durations) if ends is None else ends
    nodes = graph.longest_path(durations, ends)
    seconds = np.bincount(
        graph.rank[nodes], weights=durations[nodes], minlength=graph.ranks
    ).astype(np.float64)
    length_s = float(ends.max()) if len(graph) else 0.0
    return ObservedPath(tuple(nodes), length_s, seconds)


def slack_of_ranks(
    graph: Graph, durations: Floats, ranks: Sequence[int] | None = None
) -> list[float]:
    """Per rank, how much more it could compute without a longer iteration, as a share.

    durations: (n,), seconds. ranks: of these alone; None: of all. 0 for a rank whose computations
    are all on the longest path.
    """
    path = observed_path(graph, durations)
    movable = np.ones(len(graph), dtype=bool)
    movable[list(path.nodes)] = False
    return [
        _slack(graph, durations, np.where(movable & (graph.rank == r), durations, 0.0), path, r)
        for r in (range(graph.ranks) if ranks is None else ranks)
    ]


def _slack(
    graph: Graph, durations: Floats, stretchable: Floats, path: ObservedPath, rank: int
) -> float:
    """stretchable: (n,) the durations that are stretched, 0 elsewhere."""
    busy_s, movable_s = float(durations[graph.order[rank]].sum()), float(stretchable.sum())
    limit_s = path.length_s * (1 + _ROUNDING)
    if movable_s <= 0 or busy_s <= 0:
        return 0.0
    x = (path.length_s - busy_s) / movable_s  # the rank's own order is a path
    for _ in range(_MOST_STEPS):
        if x <= 0:
            return 0.0
        longest = observed_path(graph, durations + x * stretchable)
        if longest.length_s <= limit_s:
            return x * movable_s / busy_s
        moved_s = float(stretchable[list(longest.nodes)].sum())
        x -= (longest.length_s - path.length_s) / moved_s
    return max(x, 0.0) * movable_s / busy_s


@dataclass
class CriticalPath:
    """Shares and slack of one replica, a mean over its last iterations (about KEPT)."""

    graph: Graph
    iterations: int = 0
    _durations: Floats = field(init=False)
    _shares: Floats = field(init=False)
    _slack: list[float] | None = None
    _slack_of_late: dict[int, tuple[int, float]] = field(default_factory=dict)
    """By rank: as of which iteration, and the slack."""

    def __post_init__(self) -> None:
        self._durations = np.zeros(len(self.graph))
        self._shares = np.zeros(self.graph.ranks)

    def add(self, durations: Floats, ends: Floats | None = None) -> ObservedPath:
        """One more iteration: seconds per computation, (n,) in the graph's order; ends as above."""
        path = observed_path(self.graph, durations, ends)
        self.iterations += 1
        weight = 1 / min(self.iterations, KEPT)
        self._durations += weight * (durations - self._durations)
        self._shares += weight * (path.shares - self._shares)
        self._slack = None
        return path

    def shares(self) -> Sequence[tuple[int, float]]:
        """(rank, its share of the critical path), largest first; empty before any iteration."""
        return _largest_first(dict(enumerate(self._shares.tolist())))

    def slack(self) -> Sequence[float]:
        """Per rank, as a share of what it computes; empty before any iteration.

        Found when asked for, from mean durations: noise would hide slack in a single iteration.
        """
        if not self.iterations:
            return ()
        if self._slack is None:
            self._slack = slack_of_ranks(self.graph, self._durations)
        return self._slack

    def slack_of_late(self) -> Sequence[float | None]:
        """As `slack`, and for who must not wait: None where it was not found yet.

        Each call brings the ranks that were not for longest up to date, as many as take little.
        """
        known, ranks = self._slack_of_late, range(self.graph.ranks)
        stale = [r for r in ranks if known.get(r, (0, 0.0))[0] < self.iterations]
        stale.sort(key=lambda r: known.get(r, (0, 0.0))[0])
        some = stale[: max(1, _NODES_AT_ONCE // max(len(self.graph), 1))]
        for rank, slack in zip(
            some, slack_of_ranks(self.graph, self._durations, some), strict=True
        ):
            known[rank] = self.iterations, slack
        return [known[r][1] if r in known else None for r in ranks] if known else ()


@dataclass
class ReplicaPaths:
    """Several replicas' iterations: all wait for the slowest, whose path is the iteration's."""

    iterations: int = 0
    _seconds: dict[tuple[int, int], float] = field(default_factory=dict)

    def add(self, paths: Mapping[int, ObservedPath]) -> int:
        """One iteration's path of each replica. Returns which replica was the slowest."""
        slowest = max(sorted(paths), key=lambda replica: paths[replica].length_s)
        self.iterations += 1
        for rank, seconds in enumerate(paths[slowest].seconds.tolist()):
            place = (slowest, rank)
            self._seconds[place] = self._seconds.get(place, 0.0) + seconds
        return slowest

    def shares(self) -> Sequence[tuple[tuple[int, int], float]]:
        """((replica, rank), its share of all iterations' critical paths), largest first."""
        total = sum(self._seconds.values())
        return _largest_first({place: s / total for place, s in self._seconds.items()})


def _largest_first(shares: Mapping[_Place, float]) -> list[tuple[_Place, float]]:
    return sorted(((k, s) for k, s in shares.items() if s > 0), key=lambda item: -item[1])
