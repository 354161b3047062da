"""What is known of a pipeline whose order is understood; kept while the order stays the same."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from perseusd.core.critical import CriticalPath
from perseusd.core.events.clocklog import ClockLog, activities
from perseusd.core.events.iterations import Assembly, JobIteration
from perseusd.core.events.pacing import PacedPlan, Pacer
from perseusd.core.graph import Graph
from perseusd.core.learned.curves import TimeModel
from perseusd.core.learned.knowledge import GpuFacts, Knowledge
from perseusd.core.model import Computation, Kind, Pipeline
from perseusd.core.settings import Settings
from perseusd.core.trials.explorer import Explorer

IMPURE = 0.2
"""Share of a computation at another clock above which its duration teaches nothing."""

STRANGE = 0.04
"""Relative change of a rank's pace at full clock, beyond noise, that is not taken for learning: a
straggler's durations would become the usual ones before it has been noticed."""

STRANGE_SIGMAS = 4.0
FEWEST_AT_TOP = 3
"""Computations at full clock that tell a rank's pace."""

REACH_ROUNDING = 1e-3
"""Shapes' knots are rounded; the lowest clock explored is still within reach."""

RECENT = 2
"""Iterations whose pace tells how slow a rank is now."""


@dataclass
class Episode:
    """One uninterrupted stretch in which every rank is followed; trouble starts another.

    early: whole iterations seen before the order was understood.
    ends: when each rank's last whole iteration ended.
    clear: understood iterations since the last trouble.
    """

    assembly: Assembly
    early: list[JobIteration] = field(default_factory=list)
    pacer: Pacer | None = None
    normal: PacedPlan | None = None
    ends: dict[int, int] = field(default_factory=dict)
    slowed_by_straggler: bool = False
    clear: int = 0
    reference: int | None = None
    """The iteration that runs at full clock so that savings stay measured."""


class Understanding:
    """A pipeline, its graph, and what its computations were seen to take."""

    def __init__(
        self, pipeline: Pipeline, gpus: Mapping[int, GpuFacts], settings: Settings
    ) -> None:
        """gpus: by rank, the GPU that stands for all of that stage's."""
        self.pipeline = pipeline
        self.graph = Graph.from_pipeline(pipeline)
        self.gpus = gpus
        self.knowledge = Knowledge(gpus)
        self.explorer = Explorer(
            pipeline,
            self.graph,
            gpus,
            settings.learning_slowdown,
            settings.min_clock_fraction,
        )
        self._ranks: dict[str, list[int]] = {}
        for rank, gpu in gpus.items():
            self._ranks.setdefault(gpu.uuid, []).append(rank)
        self.observed = CriticalPath(self.graph)
        self.ours_s = 0.0
        """What lowered clocks cost the newest iteration's makespan, by the curves."""
        self._paces: deque[NDArray[np.float64]] = deque(maxlen=RECENT)

    def learn_from(
        self,
        iteration: JobIteration,
        ends: dict[int, int],
        logs: Mapping[str, ClockLog],
        ill: Collection[int] = (),
        wary: bool = False,
    ) -> list[tuple[Computation, float]]:
        """Durations and activities of a whole iteration join the knowledge.

        ill: ranks that straggle, of which nothing is learned. wary: nor of ranks that were, at
        full clock, as slow or as fast as a straggler that is not known yet. Returns every
        computation with the seconds that it would have taken at full clock.
        """
        model = self.knowledge.time_model()
        seen: list[tuple[Computation, float]] = []
        at_top: list[tuple[Computation, float]] = []
        durations = np.empty(len(self.graph))
        unslowed = np.empty(len(self.graph))
        for rank, own in enumerate(iteration.ranks):
            log = logs[self.gpus[rank].uuid]
            since = ends.get(rank, own.spans[0].start_ns)
            ends[rank] = own.spans[-1].end_ns
            cut = [
                [((b - a) * 1e-9, c) for a, b, c in log.pieces(span.start_ns, span.end_ns)]
                for span in own.spans
            ]
            durations[self.graph.order[rank]] = [span.seconds for span in own.spans]
            computations = self.pipeline.orders[rank]
            at_top += [
                (computation, sum(s for s, _ in pieces))
                for computation, pieces in zip(computations, cut, strict=True)
                if all(c == self.gpus[rank].top_mhz for _, c in pieces)
            ]
            learned = rank not in ill and not (wary and self._strange(computations, cut, model))
            if learned:
                self.knowledge.add_activities(rank, activities(rank, own.spans, since, log))
            for node, computation, pieces in zip(
                self.graph.order[rank], computations, cut, strict=True
            ):
                if learned:
                    self._time(computation.kind, pieces, model)
                seconds = self._at_full_clock(computation.kind, pieces, model)
                if seconds is not None:
                    seen.append((computation, seconds))
                unslowed[node] = self._unslowed(computation.kind, pieces, seconds, model)
        self.observed.add(durations)
        self._note_pace(seen, at_top, model)
        both = self.graph.makespan(np.stack([durations, unslowed], axis=1))
        self.ours_s = float(both[0] - both[1])
        return seen

    def relink(self, pipeline: Pipeline) -> None:
        """The same computations with other dependencies or communication: what is known holds."""
        self.pipeline, self.graph = pipeline, Graph.from_pipeline(pipeline)
        self.explorer.pipeline, self.explorer.graph = pipeline, self.graph
        self.observed = CriticalPath(self.graph)

    def _strange(
        self,
        computations: Sequence[Computation],
        cut: Sequence[Sequence[tuple[float, int]]],
        model: TimeModel,
    ) -> bool:
        """Whether what the rank ran at full clock took another time than it ever did."""
        took = usual = 0.0
        count = 0
        for computation, pieces in zip(computations, cut, strict=True):
            top_mhz = self.gpus[computation.rank].top_mhz
            if all(c == top_mhz for _, c in pieces) and computation.kind in model.top_s:
                took += sum(seconds for seconds, _ in pieces)
                usual += model.top_s[computation.kind]
                count += 1
        if count < FEWEST_AT_TOP or usual <= 0:
            return False
        noise = STRANGE_SIGMAS * self.knowledge.noise() / math.sqrt(count)
        return abs(took / usual - 1) > STRANGE + noise

    def _unslowed(
        self,
        kind: Kind,
        pieces: Sequence[tuple[float, int]],
        seconds: float | None,
        model: TimeModel,
    ) -> float:
        """Seconds at full clock; where the curve does not reach yet, what is usual there."""
        if seconds is None:
            return sum(s for s, _ in pieces)
        furthest = max((self.gpus[kind.rank].top_mhz / c for _, c in pieces), default=1.0)
        beyond = kind in model.top_s and furthest > model.reach(kind) * (1 + REACH_ROUNDING)
        return model.top_s[kind] if beyond else seconds

    def _time(self, kind: Kind, pieces: Sequence[tuple[float, int]], model: TimeModel) -> None:
        top_mhz = self.gpus[kind.rank].top_mhz
        whole = model.at_one_clock(kind, pieces, top_mhz, IMPURE) if pieces else None
        if whole is not None:
            self.knowledge.durations.add(kind, *whole)

    def _at_full_clock(
        self, kind: Kind, pieces: Sequence[tuple[float, int]], model: TimeModel
    ) -> float | None:
        """Seconds without our own slowing; None where that kind's curve is not known yet."""
        top_mhz = self.gpus[kind.rank].top_mhz
        if all(clock == top_mhz for _, clock in pieces):
            return sum(seconds for seconds, _ in pieces)
        if kind not in model.top_s:
            return None
        return sum(s / float(model.ratio(kind, top_mhz / clock)) for s, clock in pieces)

    def _note_pace(
        self,
        seen: Sequence[tuple[Computation, float]],
        at_top: Sequence[tuple[Computation, float]],
        model: TimeModel,
    ) -> None:
        """Of what ran at full clock, where that is enough: a wrong curve must not pass for slow."""
        count = np.bincount([c.rank for c, _ in at_top], minlength=self.pipeline.ranks)
        sure = {rank for rank in range(self.pipeline.ranks) if count[rank] >= FEWEST_AT_TOP}
        told = [(c, s) for c, s in at_top if c.rank in sure]
        told += [(c, s) for c, s in seen if c.rank not in sure]
        took, usual = np.zeros(self.pipeline.ranks), np.zeros(self.pipeline.ranks)
        for computation, seconds in told:
            if (top_s := model.top_s.get(computation.kind)) is not None:
                took[computation.rank] += seconds
                usual[computation.rank] += top_s
        self._paces.append(np.divide(took, usual, out=np.ones_like(took), where=usual > 0))

    def pace(self, rank: int) -> float:
        """How many times its usual time at full clock the rank's computations took of late."""
        return float(np.mean([paces[rank] for paces in self._paces])) if self._paces else 1.0

    def newest_pace(self, rank: int) -> float:
        """The same, of the newest iteration alone."""
        return float(self._paces[-1][rank]) if self._paces else 1.0

    def inflation(self, slow: Mapping[int, float]) -> float:
        """The makespan at full clock with ranks that take so much longer, over the usual one."""
        if not slow:
            return 1.0
        usual = self.explorer.top_durations(self.knowledge.time_model())
        factors = np.array([slow.get(rank, 1.0) for rank in range(self.pipeline.ranks)])
        longer: NDArray[np.float64] = usual * factors[self.graph.rank]
        return float(self.graph.makespan(longer) / self.graph.makespan(usual))

    def poll_counter(self, uuid: str, time_ns: int, energy_j: float) -> None:
        for rank in self._ranks.get(uuid, ()):
            self.knowledge.poll_counter(rank, time_ns, energy_j)

    def critical_shares(self, plan: PacedPlan) -> Sequence[tuple[int, float]]:
        """(rank, its share of the predicted critical path), largest first."""
        durations = plan.durations(self.graph)
        shares: dict[int, float] = {}
        for node in self.graph.critical_nodes(durations):
            rank = int(self.graph.rank[node])
            shares[rank] = shares.get(rank, 0.0) + float(durations[node])
        total = sum(shares.values())
        return sorted(((r, s / total) for r, s in shares.items()), key=lambda item: -item[1])
