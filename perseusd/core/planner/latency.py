"""What options do when clock writes take time: the optimiser's side, compiled.

The model is landing.py's, which states it in full. A plan must keep its deadline in that model and
with writes that take no time: a daemon that writes ahead of a boundary it predicts is somewhere
between. So all that is said here of a plan is the worse of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseusd.core.model import Curve
from perseusd.core.planner import noise
from perseusd.core.planner.instance import Instance
from perseusd.core.planner.latency_kernels import outcomes, sweep

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Change = tuple[Ints, Ints]
NO_CHANGE: Change = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))


@dataclass(frozen=True)
class SlowWrites:
    """An instance whose clock writes take time.

    A *level* is a clock of a rank: an index into the clocks that any of its kinds was measured at,
    ascending; the last of the W levels is full clock. Unlike an option it is the same clock for all
    the rank's kinds, also for those which never choose it but may meet it until a write lands.

    time, cost: (kinds, W).  level_of: (kinds, C) the level of each option.
    option_at: (kinds, W) the slowest option that is no slower a clock than a level.
    """

    inst: Instance
    time: Floats
    cost: Floats
    level_of: Ints
    option_at: Ints

    @classmethod
    def of(cls, inst: Instance) -> SlowWrites:
        kinds = inst.graph.kinds
        measured: dict[int, set[int]] = {kind.rank: set() for kind in kinds}
        for kind in kinds:
            measured[kind.rank].update(inst.problem.curves[kind].clock_mhz)
        clocks = {rank: sorted(found) for rank, found in measured.items()}
        width = 1 + max(map(len, clocks.values()))
        time, energy = np.empty((2, len(kinds), width))
        level_of = np.full(inst.kind_time.shape, width - 1, dtype=np.int64)
        option_at = np.empty((len(kinds), width), dtype=np.int64)
        for k, kind in enumerate(kinds):
            levels = np.array(clocks[kind.rank])
            time[k], energy[k] = _everywhere(inst.problem.curves[kind], levels, width)
            lower = [clock for clock in inst.kind_clocks[k] if clock is not None]
            level_of[k, : len(lower)] = np.searchsorted(levels, lower)
            option_at[k] = len(lower)
            option_at[k, : len(levels)] = np.searchsorted(lower, levels)
        power = np.array([inst.problem.blocking_power_w[kind.rank] for kind in kinds])
        return cls(inst, time, energy - power[:, None] * time, level_of, option_at)

    def levels(self, option: NDArray[np.intp]) -> Ints:
        """(n,) levels of (n,) options."""
        found: Ints = self.level_of[self.inst.graph.kind_index, option]
        return found

    def outcome(self, option: NDArray[np.intp]) -> tuple[Floats, float]:
        """(K,) when the iteration ends, and its mean cost in joules, at (n,) options."""
        ends, costs, _ = self.outcomes(self.levels(option), [NO_CHANGE])
        return ends[0], float(costs[0])

    def outcomes(self, level: Ints, changes: Sequence[Change]) -> tuple[Floats, Floats, Ints]:
        """(changes, K) ends, (changes,) mean costs, (changes, 2) writes, each made to (n,) levels.

        The writes are those of all ranks together, and those of the rank that writes most.
        changes: (members,) nodes and the levels they are put at.
        """
        sizes = [len(nodes) for nodes, _ in changes]
        ends = np.empty((len(changes), self.inst.factor.shape[1]))
        costs, writes = np.empty(len(changes)), np.empty((len(changes), 2), dtype=np.int64)
        outcomes(
            level,
            np.cumsum([0, *sizes], dtype=np.int64),
            np.concatenate([np.zeros(0, dtype=np.int64), *(nodes for nodes, _ in changes)]),
            np.concatenate([np.zeros(0, dtype=np.int64), *(levels for _, levels in changes)]),
            ends,
            costs,
            writes,
            *self._model,
        )
        return ends, costs, writes

    def counted(self, ends: Floats) -> Floats:
        """(m,) what of (m, K) ends is compared with the deadline."""
        return noise.iteration_time(ends, self.inst.problem.confidence)

    def sweep(self, level: Ints, moves: Ints, terms: Floats) -> Floats:
        """(m,) gains of (m, 4) moves, which are made on (n,) levels; see latency_kernels.sweep."""
        gain = np.empty(len(moves))
        sweep(level, moves, gain, self.real, terms, self._weight, *self._model)
        return gain

    @cached_property
    def real(self) -> Ints:
        """(kinds, W) the level of the option that each kind takes where it is put at a level."""
        found: Ints = np.take_along_axis(self.level_of, self.option_at, axis=1)
        return found

    @cached_property
    def _weight(self) -> Floats:
        """(K,) weights of ascending ends whose sum is what `counted` says."""
        samples, confidence = self.inst.factor.shape[1], self.inst.problem.confidence
        if confidence is None:
            return np.full(samples, 1.0 / samples)
        away = np.abs(np.arange(samples) - confidence * (samples - 1))
        weight: Floats = np.maximum(0.0, 1.0 - away)
        return weight

    @cached_property
    def _model(self) -> tuple[Any, ...]:
        """What every kernel is given of the model, in their order."""
        problem, network = self.inst.problem, self.inst.network
        return (
            np.ascontiguousarray(self.inst.factor.T),
            np.array([problem.gpus_per_rank, problem.gpus_per_node, problem.full_clock_at_end]),
            float(problem.write_latency_s),
            network.kind,
            network.rank,
            network.rank_first,
            network.rank_node,
            network.into_first,
            network.into_edge,
            network.from_first,
            network.from_edge,
            network.tail,
            network.head,
            network.lag,
            self.time,
            self.cost,
        )


def _everywhere(curve: Curve, clocks: NDArray[np.int64], width: int) -> tuple[Floats, Floats]:
    """(width,) times and energies at (clocks,) and, from there on, at full clock.

    Between measured clocks in proportion; below the lowest both grow as the clock falls.
    """
    below = np.maximum(1.0, curve.clock_mhz[0] / clocks)
    both = []
    for values in (curve.time_s, curve.energy_j):
        found = np.full(width, values[-1])
        found[: len(clocks)] = np.interp(clocks, curve.clock_mhz, values) * below
        both.append(found)
    return both[0], both[1]
