"""Is this a problem that can be planned? Errors name the thing, its value and the fix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from perseusd.core.model import Curve, Kind, Problem
from perseusd.errors import PlanningError


def check(problem: Problem, kinds: Sequence[Kind]) -> None:
    """Raises PlanningError naming thing, value and fix."""
    ranks = problem.pipeline.ranks
    powers = list(problem.blocking_power_w)
    if len(powers) != ranks:
        raise PlanningError(
            f"blocking_power_w has {len(powers)} values for {ranks} ranks: give one per rank"
        )
    for rank, power in enumerate(powers):
        if not (math.isfinite(power) and power >= 0):
            raise PlanningError(
                f"blocking power of rank {rank} is {power} W: must be finite and ≥ 0"
            )
    if not kinds:
        raise PlanningError("the pipeline has no computations: there is nothing to plan")
    for kind in kinds:
        curve = problem.curves.get(kind)
        if curve is None:
            raise PlanningError(f"no curve for {_words(kind)}: measure it at two clocks or more")
        _check_curve(curve, kind)
    if not problem.noise >= 0 or not math.isfinite(problem.noise):
        raise PlanningError(f"noise is {problem.noise}: must be a finite share ≥ 0, such as 0.01")
    confidence = problem.confidence
    if confidence is not None and not 0.5 <= confidence < 1.0:
        raise PlanningError(
            f"confidence is {confidence}: must be a share of iterations ≥ 0.5 and < 1, such as "
            "0.95, or None for the average"
        )
    if problem.max_writes is not None and problem.max_writes < 0:
        raise PlanningError(
            f"max_writes is {problem.max_writes}: must be ≥ 0, or None for no limit"
        )
    _check_writing(problem)
    _check_deadline(problem)


def _check_writing(problem: Problem) -> None:
    latency = problem.write_latency_s
    if not (math.isfinite(latency) and latency >= 0):
        raise PlanningError(
            f"write_latency_s is {latency}: must be finite seconds ≥ 0, such as 0.005"
        )
    for name, count in (
        ("gpus_per_rank", problem.gpus_per_rank),
        ("gpus_per_node", problem.gpus_per_node),
    ):
        if count < 1:
            raise PlanningError(f"{name} is {count}: must be ≥ 1")


def _check_deadline(problem: Problem) -> None:
    ratio = problem.deadline_ratio
    if not (math.isfinite(ratio) and ratio >= 1.0):
        raise PlanningError(
            f"deadline_ratio is {ratio}: the shortest is 1.0, the iteration with every "
            "computation at its highest clock"
        )


def _check_curve(curve: Curve, kind: Kind) -> None:
    points = len(curve.clock_mhz)
    if not points == len(curve.time_s) == len(curve.energy_j):
        raise PlanningError(
            f"curve of {_words(kind)} has {points} clocks, {len(curve.time_s)} times and "
            f"{len(curve.energy_j)} energies: must be as many of each"
        )
    if points < 2:
        raise PlanningError(
            f"curve of {_words(kind)} has {points} clock(s): measure it at two or more"
        )
    for name, values in (("time_s", curve.time_s), ("energy_j", curve.energy_j)):
        for clock, value in zip(curve.clock_mhz, values, strict=True):
            if not (math.isfinite(value) and value > 0):
                raise PlanningError(
                    f"curve of {_words(kind)}: {name} at {clock} MHz is {value}, "
                    "must be finite and > 0"
                )
    for lower, higher in pairwise(curve.clock_mhz):
        if lower >= higher:
            raise PlanningError(
                f"curve of {_words(kind)}: clock {higher} MHz follows {lower} MHz, "
                "clocks must ascend without duplicates"
            )


def _words(kind: Kind) -> str:
    return f"{kind.instruction} on rank {kind.rank}, chunk {kind.chunk}"
