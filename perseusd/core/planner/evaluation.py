"""What a plan does, by the plainest simulation: it shares no timing code with the optimiser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perseusd.core.model import Computation, Plan, Problem
from perseusd.core.planner import noise
from perseusd.core.planner.landing import land
from perseusd.errors import PlanningError

Floats = NDArray[np.float64]
_Edges = dict[Computation, list[tuple[Computation, float]]]


@dataclass(frozen=True)
class Evaluation:
    """Values over the problem's samples of the noise.

    Where clock writes take time, time and energy are the greater ones of two: of writes that do
    (landing.py), and of writes that take none, as if each were made ahead of its boundary.

    iteration_time_s: mean time of one iteration, or with Problem.confidence the time that this
        share of iterations keeps; deadline_s is of the same kind.
    energy_j: of an iteration of that time, its ranks waiting until the deadline at least.
    start_s: per rank, mean start of each computation in execution order, writes taking no time.
    """

    iteration_time_s: float
    energy_j: float
    deadline_s: float
    start_s: tuple[tuple[float, ...], ...]


def evaluate(problem: Problem, plan: Plan) -> Evaluation:
    """Run the plan, and full clock for the deadline, over the problem's samples of the noise.

    Raises PlanningError when the plan does not fit the pipeline or names a clock without a
    measurement.
    """
    orders = problem.pipeline.orders
    full = Plan(tuple((None,) * len(order) for order in orders))
    _, ends = _run(problem, full)
    deadline = _counted(problem, ends) * problem.deadline_ratio
    starts, ends = _run(problem, plan)
    computing = sum(
        _point(problem, c, clock)[1]
        - problem.blocking_power_w[c.rank] * _point(problem, c, clock)[0]
        for order, clocks in zip(orders, plan.clocks, strict=True)
        for c, clock in zip(order, clocks, strict=True)
    )
    if problem.write_latency_s > 0:
        ends, computing = _slow_writes(problem, plan, ends, computing)
    end = _counted(problem, ends)
    return Evaluation(
        iteration_time_s=end,
        energy_j=float(computing + sum(problem.blocking_power_w) * max(end, deadline)),
        deadline_s=deadline,
        start_s=tuple(tuple(float(starts[c].mean()) for c in order) for order in orders),
    )


def _counted(problem: Problem, ends: Floats) -> float:
    """Of (K,) iteration times, what is compared: their mean or the quantile that is asked for."""
    if problem.confidence is None:
        return float(ends.mean())
    return float(np.quantile(ends, problem.confidence))


def _slow_writes(
    problem: Problem, plan: Plan, ends: Floats, computing: float
) -> tuple[Floats, float]:
    """The later ends, (K,), and the greater cost: of writes that take time and of these."""
    factors = noise.of_problem(problem)
    landed = land(problem, plan, factors)
    slow_ends = np.array([one.end_s for one in landed])
    slow_cost = float(np.mean([one.cost_j for one in landed]))
    return np.maximum(ends, slow_ends), max(computing, slow_cost)


def _run(problem: Problem, plan: Plan) -> tuple[dict[Computation, Floats], Floats]:
    """Each computation's starts and the iterations' ends, (K,) each."""
    orders = problem.pipeline.orders
    _check_shape(orders, plan)
    factors = noise.of_problem(problem)
    before: _Edges = {c: [] for order in orders for c in order}
    for edge in problem.pipeline.edges:
        before[edge.after].append((edge.before, edge.lag_s))
    start: dict[Computation, Floats] = {}
    end: dict[Computation, Floats] = {}
    free = [np.zeros(f.shape[1]) for f in factors]
    position = [0] * len(orders)
    progress = True
    while progress:
        progress = False
        for rank, order in enumerate(orders):
            while position[rank] < len(order):
                here = order[position[rank]]
                if any(c not in end for c, _ in before[here]):
                    break
                start[here] = np.max(
                    [free[rank], *(end[c] + lag for c, lag in before[here])], axis=0
                )
                seconds = _point(problem, here, plan.clocks[rank][position[rank]])[0]
                end[here] = free[rank] = start[here] + seconds * factors[rank][position[rank]]
                position[rank] += 1
                progress = True
    if len(end) < len(before):
        raise PlanningError("the pipeline's dependencies form a cycle: it cannot run")
    return start, np.max(free, axis=0)


def _check_shape(orders: Sequence[Sequence[Computation]], plan: Plan) -> None:
    want, have = [len(order) for order in orders], [len(clocks) for clocks in plan.clocks]
    if want != have:
        raise PlanningError(
            f"the plan has {have} computations per rank, the pipeline {want}: "
            "it was made for another pipeline"
        )


def _point(problem: Problem, computation: Computation, clock: int | None) -> tuple[float, float]:
    """(time s, energy J) of a computation at a clock; None is the curve's highest."""
    curve = problem.curves[computation.kind]
    if clock is None:
        return curve.time_s[-1], curve.energy_j[-1]
    try:
        at = curve.clock_mhz.index(clock)
    except ValueError:
        raise PlanningError(
            f"the plan runs {computation} at {clock} MHz, where its curve has no point"
        ) from None
    return curve.time_s[at], curve.energy_j[at]
