"""What a recorded run tells: who was slow, where the time went, and how much of it too much.

Stragglers are found by the daemon's own detector, fed in order as it would have been, and the
critical path is the daemon's own. The slowdown answers a what-if (Lin et al., OSDI 2025): what
iterations took, over what they would have taken with every computation at the median of its like,
which are those of the same stage and instruction, in all replicas and iterations. Only the longest
path changes then; what an iteration took beside it (synchronisation, optimizer) stays as it was:

    slowdown = Σ T / Σ (T − L + L′),   L the longest path as it was, L′ with medians,

with L for T where a trace does not tell how long iterations took.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median, median_low

import numpy as np
from numpy.typing import NDArray

from perseusd.core.critical import CriticalPath, ObservedPath, ReplicaPaths
from perseusd.core.graph import Graph
from perseusd.core.model import Computation, Kind
from perseusd.core.schedules import pipeline
from perseusd.core.stragglers import Observation, Straggler, Watch
from perseusd.errors import PlanningError
from perseusd.traces.trace import Run

Floats = NDArray[np.float64]
Place = tuple[int, int]  # replica, stage
_Orders = tuple[tuple[Computation, ...], ...]
_Link = tuple[int, int, str]  # rank before, rank after, instruction after


@dataclass(frozen=True)
class RunAnalysis:
    """One run's verdict.

    numbers: the iterations that count, in the trace's own numbers.
    actual_s, ideal_s: over all of them, as it was and with every computation at its median.
    shares: of the critical path, largest first. slack: by place, as a share of what it computes.
    not_followed: iterations of which only the time could be used, by the reason in words.
    """

    run: Run
    numbers: Sequence[int]
    actual_s: float
    ideal_s: float
    stragglers: Sequence[Straggler]
    shares: Sequence[tuple[Place, float]]
    path_s: float
    slack: Mapping[Place, float]
    not_followed: Mapping[str, int]

    @property
    def slowdown(self) -> float | None:
        return self.actual_s / self.ideal_s if self.ideal_s > 0 else None


def analyse(run: Run) -> RunAnalysis:
    """The verdict on one run."""
    what_if = _WhatIf(run.observations)
    by_number: dict[int, list[Observation]] = defaultdict(list)
    for observation in run.observations:
        by_number[observation.number].append(observation)
    for own in by_number.values():
        what_if.iteration(own)
    return RunAnalysis(
        run=run,
        numbers=list(by_number),
        actual_s=what_if.actual_s,
        ideal_s=what_if.ideal_s,
        stragglers=_stragglers(run),
        shares=what_if.paths.shares(),
        path_s=what_if.path_s,
        slack=what_if.slack(),
        not_followed=what_if.not_followed,
    )


def _stragglers(run: Run) -> list[Straggler]:
    """As the daemon would have reported them, in the trace's own words for who they are."""
    watch = Watch()
    for observation in run.observations:
        watch.observe(observation)
    return [_named(straggler, run) for straggler in watch.history()]


def _named(straggler: Straggler, run: Run) -> Straggler:
    """The rank as the trace numbers it; null for what the trace does not tell."""
    replica = straggler.replica if run.replicas_told else None
    rank = None
    if straggler.stage is not None:
        rank = run.ranks.get((straggler.replica or 0, straggler.stage))
    return replace(straggler, replica=replica, rank=rank)


@dataclass
class _Followed:
    """One replica with one order: its graph, medians in the graph's order, and observed path."""

    graph: Graph
    ideal: Floats
    path: CriticalPath


@dataclass
class _WhatIf:
    """Adds up what iterations took, and what they would have taken without anything unusual."""

    observations: Sequence[Observation]
    actual_s: float = 0.0
    ideal_s: float = 0.0
    path_s: float = 0.0
    paths: ReplicaPaths = field(default_factory=ReplicaPaths)
    not_followed: Counter[str] = field(default_factory=Counter)
    _known: dict[tuple[int, _Orders], _Followed | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._medians = medians_of_like(self.observations)
        self._lags = _typical_lags(self.observations)
        times = [o.time_s for o in self.observations if o.time_s is not None]
        self._usual_s = median(times) if times else None

    def iteration(self, replicas: Sequence[Observation]) -> None:
        """One iteration, as every replica of which something is known ran it."""
        paths: dict[int, ObservedPath] = {}
        ideal_s = 0.0
        for own in replicas:
            followed = self._follow(own)
            if followed is not None:
                seconds = dict(own.computations)
                durations = np.array([seconds[node] for node in followed.graph.nodes])
                paths[own.replica] = followed.path.add(durations)
                ideal_s = max(ideal_s, float(followed.graph.makespan(followed.ideal)))
        if paths:
            slowest = paths[self.paths.add(paths)]
            self.path_s += float(slowest.seconds.sum())
            took_s = max(_longest(replicas) or 0.0, slowest.length_s)
            self.actual_s += took_s
            self.ideal_s += took_s - slowest.length_s + ideal_s
        elif self._usual_s is not None:
            self.actual_s += _longest(replicas) or self._usual_s
            self.ideal_s += self._usual_s

    def slack(self) -> dict[Place, float]:
        """By (replica, stage), of the order that a replica ran most."""
        chosen: dict[int, _Followed] = {}
        for (replica, _), known in self._known.items():
            if isinstance(known, _Followed):
                before = chosen.get(replica)
                if before is None or known.path.iterations > before.path.iterations:
                    chosen[replica] = known
        return {
            (replica, stage): slack
            for replica, known in sorted(chosen.items())
            for stage, slack in enumerate(known.path.slack())
        }

    def _follow(self, observation: Observation) -> _Followed | None:
        """The graph of what was observed; None where there is none, counted with its reason."""
        if not observation.computations:
            return None
        orders = _orders(observation)
        place = observation.replica, orders
        if place not in self._known:
            self._known[place] = self._understand(observation.replica, orders)
        known = self._known[place]
        if isinstance(known, str):
            self.not_followed[known] += 1
            return None
        return known

    def _understand(self, replica: int, orders: _Orders) -> _Followed | str:
        lags = self._lags.get(replica, {})
        try:
            graph = Graph(
                pipeline(orders, lambda a, b: lags.get((a.rank, b.rank, b.instruction), 0.0))
            )
        except PlanningError as error:
            return str(error)
        ideal = np.array([self._medians[node.kind] for node in graph.nodes])
        return _Followed(graph, ideal, CriticalPath(graph))


def medians_of_like(observations: Iterable[Observation]) -> dict[Kind, float]:
    """By stage, chunk and instruction, over all replicas, iterations and microbatches.

    Of an even number the lower of the two in the middle: where one of two replicas is slow
    throughout, the other is what is usual.
    """
    seconds: dict[Kind, list[float]] = defaultdict(list)
    for observation in observations:
        for computation, taken in observation.computations:
            seconds[computation.kind].append(taken)
    return {kind: median_low(own) for kind, own in seconds.items()}


def _longest(replicas: Iterable[Observation]) -> float | None:
    return max((own.time_s for own in replicas if own.time_s is not None), default=None)


def _typical_lags(observations: Iterable[Observation]) -> dict[int, dict[_Link, float]]:
    seen: dict[int, dict[_Link, list[float]]] = defaultdict(lambda: defaultdict(list))
    for observation in observations:
        for link, lag_s in observation.lags.items():
            seen[observation.replica][link].append(lag_s)
    return {
        replica: {link: median(lags) for link, lags in links.items()}
        for replica, links in seen.items()
    }


def _orders(observation: Observation) -> _Orders:
    """Per rank from 0, its computations as they were run."""
    ranks: dict[int, list[Computation]] = defaultdict(list)
    for computation, _ in observation.computations:
        ranks[computation.rank].append(computation)
    return tuple(tuple(ranks.get(rank, ())) for rank in range(1 + max(ranks)))
