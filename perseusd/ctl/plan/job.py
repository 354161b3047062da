"""Profile, schedule and goal put together: the problem that the planner is given.

Everything that is the user's to put right is found here, before the planner is even imported.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from perseusd.core.graph import Graph
from perseusd.core.model import Curve, Kind, Problem
from perseusd.core.schedules import pipeline
from perseusd.ctl.plan.arguments import Request
from perseusd.ctl.plan.orders import Ordered, curves_by_kind, ordered, unused
from perseusd.errors import PlanningError, UsageError
from perseusd.traces.profile import read_profile
from perseusd.traces.zeus import ZEUS_NAMES

# Relative: a deadline that was rounded when it was copied is still the shortest.
_ROUNDED = 1e-6
_DIGITS = 6  # of a second, in which the shortest iteration is told


@dataclass(frozen=True)
class Job:
    """What is to be planned, with the noise-free iteration of every computation at full clock.

    baseline_energy_j: until that iteration's own end.
    longest_useful_s: with every computation at its cheapest clock; more time is only waited.
    """

    problem: Problem
    ordered: Ordered
    baseline_time_s: float
    baseline_energy_j: float
    longest_useful_s: float
    warnings: tuple[str, ...]

    @property
    def calm(self) -> Problem:
        """The problem without noise."""
        return replace(self.problem, noise=0.0, confidence=None)

    @property
    def deadline_s(self) -> float:
        """Noise-free, as everything that is told of a plan."""
        return self.problem.deadline_ratio * self.baseline_time_s

    @property
    def waiting_power_w(self) -> float:
        return float(sum(self.problem.blocking_power_w))


def job_of(request: Request) -> Job:
    """Raises UsageError (a bad profile's is a ProfileError) naming thing, value and fix."""
    profile = read_profile(request.profile)
    found = ordered(request, profile)
    curves = curves_by_kind(request.profile, profile, found)
    try:
        made = pipeline(found.orders, request.communication_s, found.layout)
        graph = Graph.from_pipeline(made)
    except PlanningError as error:
        raise UsageError(f"--schedule {found.name}: {error}") from None
    powers = _powers(request, made.ranks)
    baseline_s = _makespan(graph, {kind: curve.time_s[-1] for kind, curve in curves.items()})
    cheapest = {kind: _cheapest_s(curve, powers[kind.rank]) for kind, curve in curves.items()}
    longest_s = _makespan(graph, cheapest)
    ratio = _ratio(request, baseline_s)
    problem = Problem(
        pipeline=made,
        curves=curves,
        blocking_power_w=powers,
        deadline_ratio=ratio,
        noise=request.noise,
        confidence=request.confidence,
        max_writes=request.clock_writes if isinstance(request.clock_writes, int) else None,
        write_latency_s=request.write_latency_s,
        gpus_per_rank=request.tensor_parallel,
        gpus_per_node=request.gpus_per_node,
        time_budget_s=request.time_budget_s,
    )
    return Job(
        problem=problem,
        ordered=found,
        baseline_time_s=baseline_s,
        baseline_energy_j=_energy(graph, curves, powers, baseline_s),
        longest_useful_s=longest_s,
        warnings=(
            *_unused_warnings(unused(profile, found), found.name),
            *_power_warnings(curves, powers),
            *_export_warnings(request, found),
            *_goal_warnings(ratio * baseline_s, longest_s),
        ),
    )


def _powers(request: Request, ranks: int) -> tuple[float, ...]:
    powers = request.blocking_power_w
    if len(powers) == 1:
        return powers * ranks
    if len(powers) != ranks:
        raise UsageError(
            f"--blocking-power has {len(powers)} values for {ranks} ranks: give one for all, or "
            "one for each rank"
        )
    return powers


def _ratio(request: Request, shortest_s: float) -> float:
    """The deadline over the shortest iteration time."""
    ratio, given = request.deadline_ratio, f"--deadline-ratio {request.deadline_ratio}"
    if request.deadline_s is not None:
        ratio, given = request.deadline_s / shortest_s, f"--deadline {request.deadline_s:g}"
    if ratio is None or ratio < 1 - _ROUNDED:
        told = math.ceil(shortest_s * 10**_DIGITS) / 10**_DIGITS
        raise UsageError(
            f"{given}: below the shortest iteration, which is {told:.{_DIGITS}f} s (ratio 1) with "
            "every computation at its highest clock"
        )
    return max(1.0, ratio)


def _makespan(graph: Graph, time_s: Mapping[Kind, float]) -> float:
    by_kind = np.array([time_s[kind] for kind in graph.kinds])
    return float(graph.makespan(by_kind[graph.kind_index]))


def _cheapest_s(curve: Curve, power_w: float) -> float:
    """Time at the clock where a computation costs least, waiting less for it counted in."""
    points = zip(curve.energy_j, curve.time_s, strict=True)
    return min((energy - power_w * time, time) for energy, time in points)[1]


def _energy(
    graph: Graph, curves: Mapping[Kind, Curve], powers: tuple[float, ...], end_s: float
) -> float:
    """Of one iteration at full clock, every rank waiting until `end_s`."""
    computing = math.fsum(
        curves[node.kind].energy_j[-1] - powers[node.rank] * curves[node.kind].time_s[-1]
        for node in graph.nodes
    )
    return computing + end_s * sum(powers)


def _unused_warnings(instructions: Sequence[str], schedule: str) -> Iterator[str]:
    if instructions:
        yield f"{' and '.join(instructions)} is in the profile, and not in {schedule}: left out"


def _power_warnings(curves: Mapping[Kind, Curve], powers: tuple[float, ...]) -> Iterator[str]:
    for kind, curve in curves.items():
        lowest = min(e / t for e, t in zip(curve.energy_j, curve.time_s, strict=True))
        if lowest <= powers[kind.rank]:
            yield (
                f"{kind.instruction} of rank {kind.rank} takes as little as {lowest:.0f} W, no "
                f"more than the blocking power of {powers[kind.rank]:g} W: is that in watts, and "
                "of one GPU that waits?"
            )
            return


def _export_warnings(request: Request, found: Ordered) -> Iterator[str]:
    others = {c.instruction for order in found.orders for c in order} - ZEUS_NAMES
    if request.export == "zeus" and others:
        yield (
            f"Zeus's own integrations report {' and '.join(sorted(ZEUS_NAMES))} only: this export "
            f"is for a client that reports {' and '.join(sorted(others))}, too"
        )


def _goal_warnings(deadline_s: float, longest_s: float) -> Iterator[str]:
    if deadline_s > longest_s * (1 + _ROUNDED):
        yield (
            f"the deadline of {deadline_s:.3f} s is past {longest_s:.3f} s, the longest iteration "
            "that still saves energy: planned as that, and the rest is waiting"
        )
