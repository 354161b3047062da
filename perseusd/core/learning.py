"""Which clocks to try next, and where in the iteration they cost nothing.

A trial lowers the clock of a rank for a window of consecutive computations. Most windows lie in
slack: warm-up forwards and cool-down backwards of most stages, and all of a light stage. So windows
are chosen greedily, rank by rank, by the worth of what they would teach, subject to the predicted
makespan staying within the iteration's budget. Clocks come from a ladder that is descended only
while lower still pays: a rung opens once the one above it is known and the net cost
(energy minus blocking power × time) was still falling there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from perseusd.core.attribution import Column, Power
from perseusd.core.curves import TimeModel
from perseusd.core.graph import Graph
from perseusd.core.knowledge import GpuFacts, Knowledge
from perseusd.core.model import Kind, Pipeline, Plan
from perseusd.errors import PlanningError

LADDER = (0.92, 0.84, 0.76, 0.69, 0.62, 0.56, 0.50)
"""Fractions of the top clock; a smooth curve between is within measurement noise."""

OPEN_AT_START = 3
"""Rungs tried at once: no GPU known to us is cheapest above 0.8 of its top clock."""

ENOUGH_PER_GROUP = 8
"""Samples of a rung, over all kinds of a group, after which it is known."""

ENOUGH_PER_KIND = 3
"""Samples of a kind over all rungs, so that its own γ can be told from its group's."""

MOST_CANDIDATES = 96
"""Windows weighed per rank and iteration; bounds the time spent in the loop."""

MOST_WINDOWS = 2
"""Per rank and iteration: two clock writes each."""

STILL_FALLING = 0.02
"""Relative fall of the net cost from one rung to the next below which lower is not worth trying."""

COST_WEIGHT = 40.0
"""Worth given up per share of an iteration lost: of two windows that teach alike, take the free."""

CAUTION = 0.7
"""Share of the budget spent on predictions: noise on near-critical windows costs the rest."""

Array = NDArray[np.float64]


class Window(NamedTuple):
    """Positions [start, stop) of a rank's order at one clock."""

    start: int
    stop: int
    clock_mhz: int


@dataclass
class Explorer:
    """Chooses trials for one job until its curves are known."""

    pipeline: Pipeline
    graph: Graph
    gpus: Mapping[int, GpuFacts]
    slowdown: float
    min_clock_fraction: float
    iterations: int = 0
    _open: dict[str, int] = field(default_factory=dict)
    _unspent: float = 0.0

    def __post_init__(self) -> None:
        self._rungs = {rank: self._ladder(gpu) for rank, gpu in self.gpus.items()}
        self._groups: dict[str, list[Kind]] = {}
        for kind in self.graph.kinds:
            self._groups.setdefault(self._group(kind), []).append(kind)

    def _ladder(self, gpu: GpuFacts) -> list[int]:
        """The ladder's clocks as this GPU supports them, descending."""
        lowest = self.min_clock_fraction * gpu.top_mhz
        usable = [c for c in gpu.supported_mhz if c >= lowest - 1e-6]
        near = (min(usable, key=lambda c: abs(c - f * gpu.top_mhz)) for f in LADDER)
        return [c for c in dict.fromkeys(near) if c < gpu.top_mhz]

    def _group(self, kind: Kind) -> str:
        return f"{self.gpus[kind.rank].model}:{kind.instruction}"

    def next_trial(self, knowledge: Knowledge, windows: int = MOST_WINDOWS) -> Plan:
        """The plan of the next iteration: full clock but for its trial windows, so many a rank."""
        self.iterations += 1
        self._descend(knowledge)
        model = knowledge.time_model()
        durations = self.top_durations(model)
        makespan = float(self.graph.makespan(durations))
        budget = self.slowdown * CAUTION * makespan + self._unspent
        clocks: list[list[int | None]] = [[None] * len(o) for o in self.pipeline.orders]
        for rank in self._neediest_first(knowledge):
            for _ in range(min(windows, MOST_WINDOWS)):
                limit = makespan + budget
                window, durations = self._best_window(
                    rank, clocks[rank], knowledge, model, durations, makespan, limit
                )
                if window is None:
                    break
                for position in range(window.start, window.stop):
                    clocks[rank][position] = window.clock_mhz
        self._unspent = max(0.0, makespan + budget - float(self.graph.makespan(durations)))
        return Plan(tuple(tuple(c) for c in clocks))

    def done(self, knowledge: Knowledge) -> bool:
        """Whether every open rung is known and no deeper one is worth opening."""
        self._descend(knowledge)
        for group, kinds in self._groups.items():
            rungs = self._rungs[kinds[0].rank][: self._open.get(group, OPEN_AT_START)]
            for level in range(len(rungs)):
                if self._seen(knowledge, kinds, level) < ENOUGH_PER_GROUP:
                    return False
            for kind in kinds:
                counts = [knowledge.durations.count(kind, c) for c in self._rungs[kind.rank]]
                if sum(counts) < ENOUGH_PER_KIND:
                    return False
        return True

    def top_durations(self, model: TimeModel) -> Array:
        """Shape (n,): every computation's duration at its highest clock.

        Raises PlanningError where a kind was never timed there.
        """
        for kind in self.graph.kinds:
            if kind not in model.top_s:
                raise PlanningError(
                    f"{kind.instruction} of stage {kind.rank} was never timed at full clock"
                )
        by_kind = np.array([model.top_s[kind] for kind in self.graph.kinds])
        durations: Array = by_kind[self.graph.kind_index]
        return durations

    def _seen(self, knowledge: Knowledge, kinds: Sequence[Kind], level: int) -> int:
        """Samples of a rung over all kinds; GPUs of one model may offer fewer rungs than others."""
        return sum(
            knowledge.durations.count(kind, self._rungs[kind.rank][level])
            for kind in kinds
            if level < len(self._rungs[kind.rank])
        )

    def _descend(self, knowledge: Knowledge) -> None:
        """Open the next rung of every group whose net cost still falls at its lowest open one."""
        model = knowledge.time_model()
        powers = knowledge.powers()
        shapes = knowledge.power_shapes(powers, model)
        blocking = knowledge.blocking_power(powers)
        for group, kinds in self._groups.items():
            level = self._open.setdefault(group, OPEN_AT_START)
            rungs = self._rungs[kinds[0].rank]
            if level >= len(rungs) or group not in shapes:
                continue
            if self._seen(knowledge, kinds, level - 1) < ENOUGH_PER_GROUP // 2:
                continue
            kind, top = kinds[0], self.gpus[kinds[0].rank].top_mhz
            share = blocking[kind.rank] / max(_top_power(powers, kind, top), 1e-9)
            x = np.array([top / rungs[level - 2], top / rungs[level - 1]])
            shape = model.shapes[group].at(x)
            net = shape * (shapes[group].at(x) - share)
            if net[1] < net[0] * (1 - STILL_FALLING):
                self._open[group] = level + 1

    def _neediest_first(self, knowledge: Knowledge) -> list[int]:
        def samples(rank: int) -> tuple[int, int]:
            kinds = {c.kind for c in self.pipeline.orders[rank]}
            seen = sum(knowledge.durations.count(k, c) for k in kinds for c in self._rungs[rank])
            return seen, (rank + self.iterations) % self.pipeline.ranks

        return sorted(range(self.pipeline.ranks), key=samples)

    def _best_window(
        self,
        rank: int,
        taken: Sequence[int | None],
        knowledge: Knowledge,
        model: TimeModel,
        durations: Array,
        makespan: float,
        limit: float,
    ) -> tuple[Window | None, Array]:
        windows = self._candidates(rank, taken)
        if not windows:
            return None, durations
        nodes = self.graph.order[rank]
        trial = np.repeat(durations[:, None], len(windows), axis=1)
        worth = np.zeros(len(windows))
        # Per kind and clock: how much longer it takes there, and what trying it is worth.
        prospects = self._prospects(rank, knowledge, model)
        for column, window in enumerate(windows):
            for position in range(window.start, window.stop):
                kind = self.pipeline.orders[rank][position].kind
                ratio, teaches = prospects[kind, window.clock_mhz]
                trial[nodes[position], column] *= ratio
                worth[column] += teaches
        cost = np.asarray(self.graph.makespan(trial))
        before = float(self.graph.makespan(durations))
        score = worth - COST_WEIGHT * (cost - before) / makespan
        score[cost > limit] = -np.inf
        best = int(np.argmax(score))
        if score[best] <= 0:
            return None, durations
        return windows[best], trial[:, best]

    def _candidates(self, rank: int, taken: Sequence[int | None]) -> list[Window]:
        order = self.pipeline.orders[rank]
        open_rungs = max(self._open.get(self._group(c.kind), OPEN_AT_START) for c in order)
        rungs = self._rungs[rank][:open_rungs]
        lengths = [n for n in (2, 4, 6) if n <= len(order)] or [len(order)]
        windows = [
            Window(start, start + length, clock)
            for length in lengths
            for start in range(len(order) - length + 1)
            # A window that touches another would be one longer run of two clocks.
            if all(c is None for c in taken[max(0, start - 1) : start + length + 1])
            for clock in rungs
        ]
        if len(windows) > MOST_CANDIDATES:
            rng = np.random.default_rng(self.iterations * 1009 + rank)
            keep = rng.choice(len(windows), MOST_CANDIDATES, replace=False)
            windows = [windows[i] for i in sorted(keep)]
        return windows

    def _prospects(
        self, rank: int, knowledge: Knowledge, model: TimeModel
    ) -> dict[tuple[Kind, int], tuple[float, float]]:
        """(predicted time ratio, worth) by kind and rung; worth falls with what is known."""
        top_mhz = self.gpus[rank].top_mhz
        found = {}
        for kind in dict.fromkeys(c.kind for c in self.pipeline.orders[rank]):
            counts = [knowledge.durations.count(kind, c) for c in self._rungs[rank]]
            # Of the kind itself any rung will do: they tell one number, its γ.
            own = max(0.0, 1 - sum(counts) / (2 * ENOUGH_PER_KIND))
            for level, clock in enumerate(self._rungs[rank]):
                seen = self._seen(knowledge, self._groups[self._group(kind)], level)
                shared = max(0.0, 1 - seen / (1.25 * ENOUGH_PER_GROUP))
                ratio = _predicted_ratio(model, kind, top_mhz / clock)
                found[kind, clock] = ratio, own + 2 * shared
        return found


def _predicted_ratio(model: TimeModel, kind: Kind, x: float) -> float:
    """Known time ratio; beyond what was explored the worst case, time ∝ 1 / clock."""
    reach = model.reach(kind)
    if x <= reach + 1e-6:
        return float(model.ratio(kind, x))
    return float(model.ratio(kind, reach)) * x / reach


def _top_power(
    powers: Mapping[int, Mapping[Column | None, Power]], kind: Kind, top_mhz: int
) -> float:
    power = powers.get(kind.rank, {}).get(Column(kind, top_mhz))
    return power.watts if power else 0.0
