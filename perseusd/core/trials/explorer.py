"""Which clocks to try next, and where in the iteration they cost nothing.

A trial lowers the clock of a rank for a window of consecutive computations. Most windows lie in
slack: warm-up forwards and cool-down backwards of most stages, and all of a light stage. So windows
are chosen greedily, rank by rank, by what they would teach (see `worth`) for what they are
predicted to cost (see `windows`), within the iteration's budget. Clocks come from a ladder that is
descended only while lower might pay: the next rung opens once the one above it was tried, if the
net cost (energy minus blocking power × time) might still fall there.

Learning is over once times and powers are known well enough at every rung that plans would use and
none deeper is promising, or once nothing that the budget allows would teach much more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from perseusd.core.graph import Graph
from perseusd.core.learned.curves import TimeModel
from perseusd.core.learned.knowledge import GpuFacts, Knowledge
from perseusd.core.model import Kind, Pipeline, Plan
from perseusd.core.trials.windows import Found, Rank, best_window
from perseusd.core.trials.worth import Points, prospects
from perseusd.errors import PlanningError

LADDER = (0.95, 0.90, 0.85, 0.80, 0.75, 0.71, 0.67, 0.63, 0.59, 0.55, 0.50)
"""Fractions of the top clock; a smooth curve between is within measurement noise."""

OPEN_AT_START = 5
"""Rungs tried at once: no GPU known to us is cheapest above 0.75 of its top clock."""

STILL_FALLING = 0.025
"""Relative fall of the net cost below the best rung's that makes a deeper one worth trying."""

TRIED = 2
"""Computations at a rung, over all kinds of a group, after which the next one may open."""

GOOD_ENOUGH = 1.35
"""Over the errors wanted, the largest that is left: points differ, and plans use few of them."""

LITTLE = 0.02
"""Share of all that is not known which the next trial would teach, below which none is made."""

MOST_WINDOWS = 3
"""Per rank and iteration: two clock writes each."""

LARGE = 6000
"""Computations of an iteration above which one window a rank is weighed: the loop must not wait."""

CAUTION = 0.75
"""Share of the budget spent on predictions: noise on near-critical windows costs the rest."""

Array = NDArray[np.float64]


@dataclass
class Explorer:
    """Chooses trials for one job until its curves are known.

    slowdown: mean relative slowdown of an iteration that trials may cause. windows: so many were
    in the trials that were planned, whatever was seen of them.
    """

    pipeline: Pipeline
    graph: Graph
    gpus: Mapping[int, GpuFacts]
    slowdown: float
    min_clock_fraction: float
    iterations: int = 0
    windows: int = 0
    _open: dict[str, int] = field(default_factory=dict)
    _unspent: float = 0.0
    _ready: tuple[tuple[int, int], Points] | None = None
    """Points as of a version of the knowledge; a trial that is planned on them uses them up."""
    _teaches: float = 1.0
    """Share of what was not known that the last trial was to teach."""

    def __post_init__(self) -> None:
        self._rungs = {rank: self._ladder(gpu) for rank, gpu in self.gpus.items()}
        self._groups: dict[str, list[Kind]] = {}
        for kind in self.graph.kinds:
            self._groups.setdefault(self._group(kind), []).append(kind)
        self._ranks = [Rank(order) for order in self.pipeline.orders]

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
        durations = self.top_durations(knowledge.time_model())
        makespan = float(self.graph.makespan(durations))
        allowance = self.slowdown * CAUTION * makespan + self._unspent
        points = self._points(knowledge)
        self._ready = None
        lacking = float(np.sum(points.wanting()))
        clocks: list[list[int | None]] = [[None] * len(o) for o in self.pipeline.orders]
        left = allowance
        for rank in self._neediest_first(points):
            left = self._try_rank(rank, clocks[rank], points, durations, left, makespan, windows)
        self._unspent = max(0.0, left)
        self._teaches = 1 - float(np.sum(points.wanting())) / lacking if lacking > 0 else 0.0
        return Plan(tuple(tuple(c) for c in clocks))

    def _try_rank(
        self, rank: int, clocks: list[int | None], points: Points, durations: Array,
        left: float, makespan: float, windows: int,
    ) -> float:  # fmt: skip
        """Choose this rank's windows; `clocks` and `durations` follow. Returns what is left."""
        nodes = self.graph.order[rank]
        for _ in range(min(windows, MOST_WINDOWS, 1 + LARGE // len(self.graph))):
            slack = self.graph.slack(durations, makespan)[nodes]
            found = self._best(rank, clocks, points, durations[nodes], slack, max(left, 0.0))
            if found is None:
                break
            left -= found.cost
            self.windows += 1
            window = found.window
            for position in range(window.start, window.stop):
                clocks[position] = window.clock_mhz
            own = self.pipeline.orders[rank][window.start : window.stop]
            for kind in dict.fromkeys(c.kind for c in own):
                points.learn(points.index[kind, window.clock_mhz], sum(c.kind == kind for c in own))
            at = [points.index[c.kind, window.clock_mhz] for c in own]
            durations[nodes[window.start : window.stop]] = points.seconds[at]
        return left

    def _best(
        self, rank: int, taken: Sequence[int | None], points: Points, durations: Array,
        slack: Array, budget: float,
    ) -> Found | None:  # fmt: skip
        kinds = self._ranks[rank].kinds
        clocks = [c for c in self._rungs[rank] if all((k, c) in points.index for k in kinds)]
        if not clocks:
            return None
        return best_window(self._ranks[rank], clocks, taken, points, durations, slack, budget,
                           self.iterations * 1009 + rank)  # fmt: skip

    def done(self, knowledge: Knowledge) -> bool:
        """Whether trials could not change plans by much any more."""
        if any(kind not in knowledge.time_model().top_s for kind in self.graph.kinds):
            return False
        if self.iterations and self._teaches < LITTLE:
            return True
        points = self._points(knowledge)
        if any(not self._tried(knowledge, group) for group in self._groups):
            return False
        return bool(np.all(points.wanting() <= GOOD_ENOUGH**2))

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

    def slack_share(self, model: TimeModel) -> float:
        """The most that any computation may take longer, as a share of the iteration.

        All others at full clock. Raises PlanningError where a kind was never timed there.
        """
        durations = self.top_durations(model)
        makespan = float(self.graph.makespan(durations))
        return float(np.max(self.graph.slack(durations, makespan))) / makespan

    @property
    def has_lower_clocks(self) -> bool:
        """Whether any GPU supports one that may be tried."""
        return any(self._rungs.values())

    def _points(self, knowledge: Knowledge) -> Points:
        """What is to be known."""
        if self._ready is not None and self._ready[0] == knowledge.version:
            return self._ready[1]
        self._descend(knowledge)
        points = Points(
            knowledge,
            [
                (kind, clock)
                for group, kinds in self._groups.items()
                for kind in kinds
                for clock in self._rungs[kind.rank][: self._open[group]]
            ],
            self._room(self.top_durations(knowledge.time_model())),
        )
        self._ready = knowledge.version, points
        return points

    def _tried(self, knowledge: Knowledge, group: str) -> bool:
        """Whether the lowest open rung was; or one within a tenth of it."""
        level, kinds = self._open[group], self._groups[group]
        seen = 0
        for kind in kinds:
            rungs = self._rungs[kind.rank][:level]
            if not rungs:
                continue
            seen += sum(
                len(samples)
                for clock, samples in knowledge.durations.seen.get(kind, {}).items()
                if clock <= rungs[-1]
            )
        recalled = knowledge.explored(group)
        kind = kinds[0]
        rungs = self._rungs[kind.rank][:level]
        if not rungs:
            return True
        return seen >= TRIED or recalled * rungs[-1] >= self.gpus[kind.rank].top_mhz * (1 - 1e-3)

    def _descend(self, knowledge: Knowledge) -> None:
        """Open rungs that might pay; close those that cannot."""
        powers = knowledge.power_model()
        for group, kinds in self._groups.items():
            level = self._open.setdefault(group, OPEN_AT_START)
            kind = kinds[0]
            if not powers.knows(kind) or kind not in knowledge.time_model().top_s:
                continue
            rungs = self._rungs[kind.rank]
            if not rungs:
                continue
            found = prospects(knowledge, kind, rungs)
            best = min([1.0, *(p.net for p in found[:level])])
            hoped = best * (1 - STILL_FALLING)
            promising = [i for i, p in enumerate(found) if p.hoped < hoped or p.net <= best]
            deepest = max(promising, default=0) + 1
            if deepest > level and not self._tried(knowledge, group):
                deepest = level
            self._open[group] = min(max(deepest, 2), level + 1)

    def _neediest_first(self, points: Points) -> list[int]:
        need = dict.fromkeys(range(self.pipeline.ranks), 0.0)
        for (kind, _), wanting in zip(points.index, points.wanting(), strict=True):
            need[kind.rank] += float(wanting)
        return sorted(need, key=lambda rank: (-need[rank], (rank + self.iterations) % len(need)))

    def _room(self, durations: Array) -> dict[Kind, float]:
        """By how much any of a kind's computations may take longer, at full clock elsewhere."""
        deadline = float(self.graph.makespan(durations)) * (1 + self.slowdown)
        room = np.zeros(len(self.graph.kinds))
        np.maximum.at(room, self.graph.kind_index, self.graph.slack(durations, deadline))
        return dict(zip(self.graph.kinds, room.tolist(), strict=True))
