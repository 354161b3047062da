"""The JSON answer: the fields of the contract, and what else helps."""

from __future__ import annotations

from dataclasses import asdict

from perseusd.core.model import Computation
from perseusd.core.planner.frontier import FrontierPoint
from perseusd.ctl.plan.job import Job
from perseusd.ctl.plan.solution import Solution, saving

Clocks = tuple[tuple[int, ...], ...]


def answer(job: Job, solution: Solution) -> dict[str, object]:
    """One JSON object; docs/plan.md has the meaning of every field."""
    told: dict[str, object] = {
        "stages": len(job.ordered.orders),
        "chunks": job.ordered.chunks,
        "microbatches": job.ordered.microbatches,
        "schedule": job.ordered.name,
        "baseline": {
            "iteration_time_s": job.baseline_time_s,
            "energy_j": job.baseline_energy_j,
        },
        "plan": _plan(job, solution),
        "margin": None if solution.margin is None else asdict(solution.margin),
        "solve_time_s": solution.result.solve_time_s,
        "warnings": warnings(job, solution),
        "ranks": _ranks(job, solution),
    }
    if solution.frontier is not None:
        told["frontier"] = [_point(point) for point in solution.frontier.printed]
        told["frontier_time_s"] = solution.frontier_time_s
    return told


def clocks_mhz(job: Job, solution: Solution) -> Clocks:
    """Per rank in execution order; full clock as the highest that was profiled."""
    curves = job.problem.curves
    return tuple(
        tuple(
            curves[c.kind].clock_mhz[-1] if clock is None else clock
            for c, clock in zip(order, clocks, strict=True)
        )
        for order, clocks in zip(job.ordered.orders, solution.result.plan.clocks, strict=True)
    )


def warnings(job: Job, solution: Solution) -> list[str]:
    return [*job.warnings, *solution.result.warnings]


def _plan(job: Job, solution: Solution) -> dict[str, object]:
    result = solution.result
    by_writes = result.energy_lower_bound_writes_j if solution.budgeted else None
    return {
        "deadline_s": result.deadline_s,
        "iteration_time_s": result.iteration_time_s,
        "energy_j": result.energy_j,
        "energy_lower_bound_j": result.energy_lower_bound_j,
        "energy_lower_bound_writes_j": by_writes,
        "saving": result.saving,
        "bound_saving": saving(job, result.energy_lower_bound_j),
        "bound_saving_writes": None if by_writes is None else saving(job, by_writes),
        "clock_writes": result.clock_writes,
    }


def _point(point: FrontierPoint) -> dict[str, float]:
    return {
        "iteration_time_s": point.iteration_time_s,
        "energy_j": point.energy_j,
        "energy_lower_bound_j": point.energy_lower_bound_j,
    }


def _ranks(job: Job, solution: Solution) -> list[list[dict[str, object]]]:
    return [
        [_computation(c, clock) for c, clock in zip(order, clocks, strict=True)]
        for order, clocks in zip(job.ordered.orders, clocks_mhz(job, solution), strict=True)
    ]


def _computation(computation: Computation, clock_mhz: int) -> dict[str, object]:
    return {
        "instruction": computation.instruction,
        "microbatch": computation.microbatch,
        "chunk": computation.chunk,
        "clock_mhz": clock_mhz,
    }
