"""What an iteration teaches, computation by computation: what arrays are held against."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from perseusd.core.events.clocklog import ClockLog
from perseusd.core.events.iterations import JobIteration
from perseusd.core.jobs.understanding import (
    FEWEST_AT_TOP,
    IMPURE,
    REACH_ROUNDING,
    STRANGE,
    STRANGE_SIGMAS,
    Understanding,
)
from perseusd.core.learned.curves import TimeModel
from perseusd.core.learned.durations import (
    DRIFT_GAIN,
    DRIFT_SAMPLES,
    KEPT_SAMPLES,
    LEAST_DRIFT,
    MOST_DEVIATION,
    OWN_GAIN,
    Durations,
)
from perseusd.core.learned.knowledge import Knowledge
from perseusd.core.model import Computation, Kind

Pieces = Sequence[tuple[float, int]]


class PlainDurations(Durations):
    """One duration after the other; nothing is known of a mean but its samples."""

    def add(self, kind: Kind, clock_mhz: int, *seconds: float) -> None:
        for each in seconds:
            self.version += 1
            samples = self.seen.setdefault(kind, {}).setdefault(clock_mhz, [])
            if len(samples) >= DRIFT_SAMPLES and each > 0:
                self._follow_one(kind, clock_mhz, each)
            samples.append(each)
            del samples[:-KEPT_SAMPLES]
            self._means.clear()
            self._deviations.clear()

    def _follow_one(self, kind: Kind, clock_mhz: int, seconds: float) -> None:
        own = kind, clock_mhz
        level = self._level.get(own)
        if level is None:
            level = self.mean(kind, clock_mhz)[0]
        off = min(max(math.log(seconds) - level, -MOST_DEVIATION), MOST_DEVIATION)
        self._level[own] = level + (DRIFT_GAIN + OWN_GAIN) * off
        drift = self._drift.get(own, 0.0) + DRIFT_GAIN * off
        if abs(drift) >= LEAST_DRIFT:
            for clock, samples in self.seen[kind].items():
                if clock != clock_mhz:
                    samples[:] = [s * math.exp(drift) for s in samples]
                    if (kind, clock) in self._level:
                        self._level[kind, clock] += drift
            drift = 0.0
        self._drift[own] = drift


class Plain:
    """Learns beside an Understanding, of whose pipeline it is; activities are not its business."""

    def __init__(self, known: Understanding) -> None:
        self.pipeline, self.graph, self.gpus = known.pipeline, known.graph, known.gpus
        self.knowledge = Knowledge(known.gpus)
        self.knowledge.durations = PlainDurations()
        self.paces = np.ones(known.pipeline.ranks)
        self.ours_s = 0.0

    def learn_from(
        self,
        iteration: JobIteration,
        logs: Mapping[str, ClockLog],
        ill: Collection[int],
        wary: bool,
    ) -> list[tuple[Computation, float]]:
        model = self.knowledge.time_model()
        seen: list[tuple[Computation, float]] = []
        at_top: list[tuple[Computation, float]] = []
        durations, unslowed = np.empty(len(self.graph)), np.empty(len(self.graph))
        for rank, own in enumerate(iteration.ranks):
            log, order = logs[self.gpus[rank].uuid], self.pipeline.orders[rank]
            cut = [
                [((b - a) * 1e-9, c) for a, b, c in log.pieces(span.start_ns, span.end_ns)]
                for span in own.spans
            ]
            at_top += [(c, _sum(p)) for c, p in zip(order, cut, strict=True) if self._top(c, p)]
            learned = rank not in ill and not (wary and self._strange(order, cut, model))
            nodes = zip(self.graph.order[rank], order, own.spans, cut, strict=True)
            for node, computation, span, pieces in nodes:
                kind, top_mhz = computation.kind, self.gpus[rank].top_mhz
                if learned and pieces:
                    whole = model.at_one_clock(kind, pieces, top_mhz, IMPURE)
                    if whole is not None:
                        self.knowledge.durations.add(kind, *whole)
                seconds = self._at_full_clock(computation, pieces, model)
                if seconds is not None:
                    seen.append((computation, seconds))
                durations[node] = span.seconds
                unslowed[node] = self._unslowed(kind, pieces, seconds, model)
        self._note_pace(seen, at_top, model)
        self.ours_s = float(self.graph.makespan(durations) - self.graph.makespan(unslowed))
        return seen

    def _top(self, computation: Computation, pieces: Pieces) -> bool:
        return all(clock == self.gpus[computation.rank].top_mhz for _, clock in pieces)

    def _strange(
        self, order: Sequence[Computation], cut: Sequence[Pieces], model: TimeModel
    ) -> bool:
        top = [
            (_sum(pieces), model.top_s[c.kind])
            for c, pieces in zip(order, cut, strict=True)
            if self._top(c, pieces) and c.kind in model.top_s
        ]
        usual = sum(usual for _, usual in top)
        if len(top) < FEWEST_AT_TOP or usual <= 0:
            return False
        noise = STRANGE_SIGMAS * self.knowledge.noise() / math.sqrt(len(top))
        return abs(sum(took for took, _ in top) / usual - 1) > STRANGE + noise

    def _at_full_clock(
        self, computation: Computation, pieces: Pieces, model: TimeModel
    ) -> float | None:
        kind = computation.kind
        if self._top(computation, pieces):
            return _sum(pieces)
        if kind not in model.top_s:
            return None
        top_mhz = self.gpus[kind.rank].top_mhz
        return sum(s / float(model.ratio(kind, top_mhz / clock)) for s, clock in pieces)

    def _unslowed(
        self, kind: Kind, pieces: Pieces, seconds: float | None, model: TimeModel
    ) -> float:
        if seconds is None:
            return _sum(pieces)
        furthest = max((self.gpus[kind.rank].top_mhz / c for _, c in pieces), default=1.0)
        beyond = kind in model.top_s and furthest > model.reach(kind) * (1 + REACH_ROUNDING)
        return model.top_s[kind] if beyond else seconds

    def _note_pace(
        self,
        seen: Sequence[tuple[Computation, float]],
        at_top: Sequence[tuple[Computation, float]],
        model: TimeModel,
    ) -> None:
        took, usual = np.zeros(self.pipeline.ranks), np.zeros(self.pipeline.ranks)
        for rank in range(self.pipeline.ranks):
            own = [(c, s) for c, s in at_top if c.rank == rank]
            if len(own) < FEWEST_AT_TOP:
                own = [(c, s) for c, s in seen if c.rank == rank]
            for computation, seconds in own:
                if (top_s := model.top_s.get(computation.kind)) is not None:
                    took[rank] += seconds
                    usual[rank] += top_s
        self.paces = np.divide(took, usual, out=np.ones_like(took), where=usual > 0)


def _sum(pieces: Pieces) -> float:
    return sum(seconds for seconds, _ in pieces)
