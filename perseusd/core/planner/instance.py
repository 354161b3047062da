"""A problem checked and laid out as arrays: what every part of the planner works on.

What computations on one rank may share in a run is an *option*: a clock that all the rank's curves
have, ascending, and last *full clock* (each curve's highest). Where every computation has its own
clock (no limit on writes) a kind's options are all clocks of its own curve. The *cost* of a
computation is its energy minus blocking power × its time: while a rank computes it does not wait,
so that an iteration which ends at D uses Σ cost + Σ blocking power · D (Perseus, SOSP 2024,
equation 2).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from perseusd.core.graph import Graph
from perseusd.core.model import Curve, Kind, Plan, Problem
from perseusd.core.planner import noise
from perseusd.core.planner.checks import check
from perseusd.core.planner.network import Network
from perseusd.core.planner.runs import writes

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Clocks = tuple[int | None, ...]


@dataclass(frozen=True)
class Options:
    """Clocks that some kinds can share. The last is None, full clock.

    time, cost: (kinds, options).
    """

    clocks: Clocks
    time: Floats
    cost: Floats

    @classmethod
    def of(cls, curves: Sequence[Curve], power_w: float) -> Options:
        """Those that no other option equals or beats in every kind's time and cost, and full."""
        tops = {curve.clock_mhz[-1] for curve in curves}
        common = set.intersection(*(set(curve.clock_mhz) for curve in curves))
        lower = [clock for clock in sorted(common) if {clock} != tops]
        time, cost = [], []
        for curve in curves:
            at = {clock: k for k, clock in enumerate(curve.clock_mhz)}
            picked = [*(at[clock] for clock in lower), len(curve.clock_mhz) - 1]
            time.append([curve.time_s[k] for k in picked])
            cost.append([curve.energy_j[k] - power_w * curve.time_s[k] for k in picked])
        times, costs = np.array(time), np.array(cost)
        kept = _undominated(times, costs)
        clocks = (*(lower[k] for k in kept[:-1]), None)
        return cls(clocks, times[:, kept], costs[:, kept])


@dataclass(frozen=True)
class Instance:
    """n computations (nodes of `graph`), at most C options each, K samples of the noise.

    kind_clocks: per kind of the graph, its options.
    kind_time, kind_cost: (kinds, C), kinds with fewer options padded with full clock.
    full: (n,) the option which is full clock, the node's last.
    factor: (n, K) noise.
    baseline_time_s, deadline_s: the mean over the noise, or Problem.confidence's quantile.
    tightest_s: the deadline without noise, deadline_ratio × the makespan at full clock.
    waiting_power_w: blocking power of all ranks together.
    """

    problem: Problem
    graph: Graph
    network: Network
    kind_clocks: tuple[Clocks, ...]
    kind_time: Floats
    kind_cost: Floats
    full: Ints
    factor: Floats
    baseline_time_s: float
    deadline_s: float
    tightest_s: float
    waiting_power_w: float

    @classmethod
    def of(cls, problem: Problem) -> Instance:
        """Raises PlanningError naming what is wrong with the problem."""
        graph = Graph.from_pipeline(problem.pipeline)
        check(problem, graph.kinds)
        options = _options_by_kind(problem, graph)
        of_kind = [options[kind] for kind in graph.kinds]
        width = max(len(o.clocks) for o, _ in of_kind)
        full = np.array([len(o.clocks) - 1 for o, _ in of_kind], dtype=np.intp)[graph.kind_index]
        time = np.array([_padded(o.time[k], width) for o, k in of_kind])
        cost = np.array([_padded(o.cost[k], width) for o, k in of_kind])
        factor = _factors(problem, graph)
        fastest = time[graph.kind_index, full]
        makespans = graph.makespan(fastest[:, None] * factor)
        baseline = float(noise.iteration_time(makespans, problem.confidence))
        return cls(
            problem=problem,
            graph=graph,
            network=Network.of(graph),
            kind_clocks=tuple(o.clocks for o, _ in of_kind),
            kind_time=time,
            kind_cost=cost,
            full=full,
            factor=factor,
            baseline_time_s=baseline,
            deadline_s=baseline * problem.deadline_ratio,
            tightest_s=float(graph.makespan(fastest)) * problem.deadline_ratio,
            waiting_power_w=float(sum(problem.blocking_power_w)),
        )

    @cached_property
    def time(self) -> Floats:
        """(n, C) of every node."""
        time: Floats = self.kind_time[self.graph.kind_index]
        return time

    @cached_property
    def cost(self) -> Floats:
        """(n, C) of every node."""
        cost: Floats = self.kind_cost[self.graph.kind_index]
        return cost

    def durations(self, option: Ints) -> Floats:
        """(n,) expected durations at (n,) options."""
        time: Floats = self.kind_time[self.graph.kind_index, option]
        return time

    def total_cost(self, option: Ints) -> float:
        return float(self.kind_cost[self.graph.kind_index, option].sum())

    def clock(self, node: int, option: int) -> int | None:
        """MHz, None for full clock."""
        return self.kind_clocks[int(self.graph.kind_index[node])][option]

    def iteration_time(self, option: Ints) -> float:
        """Seconds that are compared with the deadline at (n,) options: see Problem.confidence."""
        drawn = self.graph.makespan(self.durations(option)[:, None] * self.factor)
        return float(noise.iteration_time(drawn, self.problem.confidence))

    def total_writes(self, option: Ints) -> int:
        """Of all ranks together, per iteration."""
        return sum(
            writes(
                option[nodes].tolist(),
                int(self.full[nodes[0]]),
                full_clock_at_end=self.problem.full_clock_at_end,
            )
            for nodes in self.graph.order
        )

    def energy(self, cost: float, end_s: float = 0.0) -> float:
        """Joules of one iteration waited until the deadline, or until its end if later."""
        return cost + self.waiting_power_w * max(end_s, self.deadline_s)

    def plan(self, option: Ints) -> Plan:
        """The plan that runs node i at its option[i]."""
        return Plan(
            tuple(
                tuple(self.clock(i, option[i]) for i in nodes.tolist())
                for nodes in self.graph.order
            )
        )


def _options_by_kind(problem: Problem, graph: Graph) -> dict[Kind, tuple[Options, int]]:
    """Each kind's options, and which row of their time and cost is its own."""
    if problem.max_writes is None:
        sharing: Iterable[list[Kind]] = [[kind] for kind in graph.kinds]
    else:
        sharing = [[k for k in graph.kinds if k.rank == rank] for rank in range(graph.ranks)]
    found = {}
    for kinds in sharing:
        power = problem.blocking_power_w[kinds[0].rank]
        options = Options.of([problem.curves[kind] for kind in kinds], power)
        found.update({kind: (options, row) for row, kind in enumerate(kinds)})
    return found


def _factors(problem: Problem, graph: Graph) -> Floats:
    drawn = noise.of_problem(problem)
    factor = np.empty((len(graph), drawn[0].shape[1]))
    for nodes, of_rank in zip(graph.order, drawn, strict=True):
        factor[nodes] = of_rank
    return factor


def _undominated(time: Floats, cost: Floats) -> list[int]:
    """time, cost: (kinds, options). Of equals the highest clock stays; full clock always does."""
    count = time.shape[1]
    both = np.concatenate([time, cost])
    no_worse = (both[:, None, :] <= both[:, :, None]).all(axis=0)  # [k, j]: j is no worse than k
    better = no_worse & (~no_worse.T | (np.arange(count) > np.arange(count)[:, None]))
    kept = np.flatnonzero(~better.any(axis=1))
    return [*kept[kept < count - 1].tolist(), count - 1]


def _padded(values: Floats, width: int) -> Floats:
    return np.append(values, np.full(width - len(values), values[-1]))
