"""The planner asked: the plan, what bounds it, what noise costs, and the frontier."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from perseusd.core.model import PlanResult, Problem
from perseusd.core.planner import evaluate, lower_bound, solve
from perseusd.core.planner.auto import solve_auto
from perseusd.core.planner.frontier import Frontier, frontier
from perseusd.ctl.plan.arguments import AUTO, Request
from perseusd.ctl.plan.job import Job


@dataclass(frozen=True)
class Margin:
    """What keeping the deadline in spite of noise takes.

    expected_*: averages over the noise, or with a confidence what that share of iterations keeps.
    *_without_margin: of a plan that knows of no noise.
    """

    noise: float
    confidence: float | None
    margin_s: float
    expected_iteration_time_s: float
    expected_baseline_time_s: float
    saving_without_margin: float
    expected_iteration_time_without_margin_s: float


@dataclass(frozen=True)
class Solution:
    """What the planner answered.

    result: its times and energies are noise-free, so that anyone can check them; what noise does
        stands in `margin`.
    budgeted: clock writes were limited, so that the bound within that budget says more.
    """

    result: PlanResult
    budgeted: bool
    margin: Margin | None
    frontier: Frontier | None
    frontier_time_s: float | None


def solved(job: Job, request: Request) -> Solution:
    """Raises PlanningError where the planner finds something wrong with the problem."""
    planner = solve_auto if request.clock_writes == AUTO else solve
    told = planner(job.problem, clock=time.perf_counter)
    result, margin = told, None
    if job.problem.noise:
        result = _calm(job, told)
        margin = _margin(job, told, planner(job.calm, clock=time.perf_counter))
    curve, curve_s = _frontier(job.calm) if request.frontier or request.plot else (None, None)
    return Solution(
        result=result,
        budgeted=request.clock_writes == AUTO or job.problem.max_writes is not None,
        margin=margin,
        frontier=curve,
        frontier_time_s=curve_s,
    )


def saving(job: Job, energy_j: float) -> float:
    """Share of the energy at full clock, both waited until the deadline."""
    waited_s = job.deadline_s - job.baseline_time_s
    return 1 - energy_j / (job.baseline_energy_j + job.waiting_power_w * waited_s)


def _calm(job: Job, told: PlanResult) -> PlanResult:
    """The same plan, told without noise.

    The planner's deadline under noise is later, as full clock's is. What cannot be done by then
    cannot be done earlier either; only the time waited is less.
    """
    outcome, bound_j = evaluate(job.calm, told.plan), lower_bound(job.calm)
    waited_j = job.waiting_power_w * (told.deadline_s - job.deadline_s)
    return replace(
        told,
        deadline_s=job.deadline_s,
        iteration_time_s=outcome.iteration_time_s,
        energy_j=outcome.energy_j,
        energy_lower_bound_j=bound_j,
        energy_lower_bound_writes_j=max(bound_j, told.energy_lower_bound_writes_j - waited_j),
        baseline_time_s=job.baseline_time_s,
        baseline_energy_j=job.baseline_energy_j,
        saving=saving(job, outcome.energy_j),
    )


def _margin(job: Job, told: PlanResult, bold: PlanResult) -> Margin:
    return Margin(
        noise=job.problem.noise,
        confidence=job.problem.confidence,
        margin_s=told.margin_s,
        expected_iteration_time_s=told.iteration_time_s,
        expected_baseline_time_s=told.baseline_time_s,
        saving_without_margin=bold.saving,
        expected_iteration_time_without_margin_s=evaluate(job.problem, bold.plan).iteration_time_s,
    )


def _frontier(calm: Problem) -> tuple[Frontier, float]:
    started = time.perf_counter()
    found = frontier(calm, clock=time.perf_counter)
    return found, time.perf_counter() - started
