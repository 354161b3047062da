"""What is known of a pipeline whose order is understood; kept while the order stays the same."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from perseusd.core.critical import CriticalPath
from perseusd.core.events.clocklog import MOST_MHZ, ClockLog, activities
from perseusd.core.events.iterations import Assembly, JobIteration
from perseusd.core.events.paced import PacedPlan
from perseusd.core.events.pacing import Pacer
from perseusd.core.events.taken import SEVERAL, Taken, taken
from perseusd.core.graph import Graph
from perseusd.core.jobs.places import Places
from perseusd.core.learned.curves import TimeModel
from perseusd.core.learned.knowledge import GpuFacts, Knowledge
from perseusd.core.model import Computation, Pipeline
from perseusd.core.pieces import Pieces, whole
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

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass
class Episode:
    """One uninterrupted stretch in which every rank is followed; trouble starts another.

    early: whole iterations seen before the order was understood.
    ends: when each rank's last whole iteration ended.
    whole, newest: the numbers of the last iteration that is whole, and that was learned from.
    clear: understood iterations since the last trouble.
    lowered_until: the last iteration that may have seen lowered clocks before that.
    """

    assembly: Assembly
    early: list[JobIteration] = field(default_factory=list)
    pacer: Pacer | None = None
    normal: PacedPlan | None = None
    ends: dict[int, int] = field(default_factory=dict)
    whole: int = -1
    newest: int = -1
    slowed_by_straggler: bool = False
    clear: int = 0
    lowered_until: int = -1
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
        self._places = Places(pipeline, self.graph, gpus)
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
        """`learning_from` at once."""
        return whole(self.learning_from(iteration, ends, logs, ill, wary))

    def learning_from(
        self,
        iteration: JobIteration,
        ends: dict[int, int],
        logs: Mapping[str, ClockLog],
        ill: Collection[int] = (),
        wary: bool = False,
    ) -> Pieces[list[tuple[Computation, float]]]:
        """Durations and activities of a whole iteration join the knowledge.

        ill: ranks that straggle, of which nothing is learned. wary: nor of ranks that were, at
        full clock, as slow or as fast as a straggler that is not known yet. Returns every
        computation with the seconds that it would have taken at full clock.
        """
        model, places = self.knowledge.time_model(), self._places
        own_logs = [logs[self.gpus[rank].uuid] for rank in range(len(iteration.ranks))]
        took = taken(iteration.ranks, own_logs)
        yield
        usual_s = np.array([model.top_s.get(k, math.nan) for k in places.kinds])[places.kind]
        lesson = self._at_one_clock(took, model)
        for rank, (own, log) in enumerate(zip(iteration.ranks, own_logs, strict=True)):
            since = ends.get(rank, own.spans[0].start_ns)
            ends[rank] = own.spans[-1].end_ns
            yield
            if rank in ill or (wary and self._strange(rank, took, usual_s)):
                continue
            kind = places.kind[places.own[rank]]
            lived = activities(places.kinds, kind, own.stamps_ns, since, log)
            self.knowledge.add_activities(rank, lived)
            self._time(rank, *lesson)
        yield
        full_s = self._at_full_clock(took, model)
        both = np.empty((len(self.graph), 2))
        both[places.node, 0] = took.seconds
        both[places.node, 1] = self._unslowed(took, full_s, usual_s, model)
        yield
        ends_s = self.graph.ends(both)
        yield
        self.ours_s = float(ends_s[:, 0].max() - ends_s[:, 1].max())
        self.observed.add(both[:, 0], ends_s[:, 0])
        self._note_pace(took, full_s, usual_s)
        told = zip(places.computations, full_s.tolist(), strict=True)
        return [(computation, seconds) for computation, seconds in told if seconds == seconds]

    def relink(self, pipeline: Pipeline) -> None:
        """The same computations with other dependencies or communication: what is known holds."""
        self.pipeline, self.graph = pipeline, Graph.from_pipeline(pipeline)
        self.explorer.pipeline, self.explorer.graph = pipeline, self.graph
        self._places = Places(pipeline, self.graph, self.gpus)
        self.observed = CriticalPath(self.graph)

    def _strange(self, rank: int, took: Taken, usual_s: Floats) -> bool:
        """Whether what the rank ran at full clock took another time than it ever did."""
        own = self._places.own[rank]
        at_top = (took.clock_mhz == self._places.top_mhz)[own] & ~np.isnan(usual_s[own])
        count = int(np.count_nonzero(at_top))
        usual = float(usual_s[own][at_top].sum())
        if count < FEWEST_AT_TOP or usual <= 0:
            return False
        off = abs(float(took.seconds[own][at_top].sum()) / usual - 1)
        if off <= STRANGE:
            return False
        return off > STRANGE + STRANGE_SIGMAS * self.knowledge.noise() / math.sqrt(count)

    def _at_one_clock(self, took: Taken, model: TimeModel) -> tuple[Ints, Floats]:
        """The clock at which each computation ran (or SEVERAL, where it teaches nothing), and the
        seconds that it would have taken there throughout."""
        clock_mhz, seconds = took.clock_mhz.copy(), took.seconds.copy()
        clock_mhz[seconds <= 0] = SEVERAL
        for k, pieces in took.pieces.items():
            kind, top_mhz = self._places.kinds[self._places.kind[k]], int(self._places.top_mhz[k])
            whole = model.at_one_clock(kind, pieces, top_mhz, IMPURE)
            if whole is not None:
                clock_mhz[k], seconds[k] = whole
        return clock_mhz, seconds

    def _time(self, rank: int, clock_mhz: Ints, seconds: Floats) -> None:
        """One rank's durations join the curves, each kind's in their order."""
        for own in self._places.of_kinds[rank]:
            kind = self._places.kinds[self._places.kind[own[0]]]
            ran = zip(clock_mhz[own].tolist(), seconds[own].tolist(), strict=True)
            for clock, some in itertools.groupby(ran, key=itemgetter(0)):
                if clock != SEVERAL:
                    self.knowledge.durations.add(kind, clock, *(s for _, s in some))

    def _at_full_clock(self, took: Taken, model: TimeModel) -> Floats:
        """(n,) seconds without our own slowing; NaN where that kind's curve is not known yet."""
        places, full_s = self._places, took.seconds.copy()
        lowered = np.flatnonzero(took.clock_mhz != places.top_mhz)
        pairs = places.kind[lowered] * MOST_MHZ + took.clock_mhz[lowered]
        found, which = np.unique(pairs, return_inverse=True)
        ratios = [self._ratio(model, *divmod(pair, MOST_MHZ)) for pair in found.tolist()]
        full_s[lowered] /= np.array(ratios)[which]
        for k, pieces in took.pieces.items():
            kind = int(places.kind[k])
            full_s[k] = sum(s / self._ratio(model, kind, c) for s, c in pieces)
        return full_s

    def _ratio(self, model: TimeModel, which: int, clock_mhz: int) -> float:
        kind = self._places.kinds[which]
        if clock_mhz == SEVERAL or kind not in model.top_s:
            return math.nan
        return float(model.ratio(kind, self.gpus[kind.rank].top_mhz / clock_mhz))

    def _unslowed(self, took: Taken, full_s: Floats, usual_s: Floats, model: TimeModel) -> Floats:
        """(n,) seconds at full clock; where the curve does not reach yet, what is usual there."""
        kinds, kind = self._places.kinds, self._places.kind
        reach = np.array([model.reach(k) if k in model.top_s else math.inf for k in kinds])[kind]
        beyond = self._places.top_mhz / took.lowest_mhz > reach * (1 + REACH_ROUNDING)
        return np.where(np.isnan(full_s), took.seconds, np.where(beyond, usual_s, full_s))

    def _note_pace(self, took: Taken, full_s: Floats, usual_s: Floats) -> None:
        """Of what ran at full clock, where that is enough: a wrong curve must not pass for slow."""
        rank, ranks = self._places.rank, self.pipeline.ranks
        at_top = took.clock_mhz == self._places.top_mhz
        sure = np.bincount(rank[at_top], minlength=ranks) >= FEWEST_AT_TOP
        told = np.where(sure[rank], at_top, ~np.isnan(full_s)) & ~np.isnan(usual_s)
        needed = np.bincount(rank[told], weights=full_s[told], minlength=ranks)
        usual = np.bincount(rank[told], weights=usual_s[told], minlength=ranks)
        self._paces.append(np.divide(needed, usual, out=np.ones(ranks), where=usual > 0))

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
