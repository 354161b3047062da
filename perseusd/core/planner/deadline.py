"""The deadline problem from beginning to end: bound, first plan, search, check.

1. Relax: every computation mixes the points of its own curve (interior.py). This bounds what any
   plan can save, and says how long each computation should take and what a second of it is worth.
2. Clocks free: place real clocks near that ideal (first.py), and time whole chains of computations
   anew until no chain can be bettered (chains.py).
   Within a budget of clock writes: raise the bound to what that budget allows (budget.py), and cut
   each rank's order into runs near the mix that attains it (starts.py).
3. Search from there where noise or a budget ask for it, on samples of the noise (search.py); where
   clock writes take time, make the plan fit that (repair.py).
4. Check with the independent evaluator; a plan that were late would be dropped for full clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perseusd.core.model import Plan, PlanResult, Problem
from perseusd.core.planner import exhaustive, first, groups
from perseusd.core.planner.bound import least_cost
from perseusd.core.planner.budget import BudgetLimit, limit
from perseusd.core.planner.chains import improve
from perseusd.core.planner.evaluation import Evaluation, evaluate
from perseusd.core.planner.hulls import Hulls
from perseusd.core.planner.instance import Instance
from perseusd.core.planner.interior import relax_free
from perseusd.core.planner.relax import Relaxed
from perseusd.core.planner.repair import repaired
from perseusd.core.planner.runs import plan_writes
from perseusd.core.planner.search import Search
from perseusd.core.planner.starts import starts

Ints = NDArray[np.intp]

# Of the baseline's energy, what all clock writes that hardly pay may forgo together.
_WRITES_WORTH = 0.001
_SEARCHED_STARTS = 3  # of the starts within a budget of writes, the best
# Where clock writes take time: of the time budget, what may go into the plan before its repair.
_NOMINAL_SHARE = 0.6
_LATE = 1e-9  # relative, by the independent evaluator


def solve(problem: Problem, *, clock: Callable[[], float] | None = None) -> PlanResult:
    """The plan of least energy found that keeps the deadline, with what bounds it.

    clock: seconds, monotonic; `time_budget_s` is kept by it, and `solve_time_s` read from it.
        Without one the search runs until it finds no improvement, the same on every machine.
    The plan's iteration over the samples of the noise is within the deadline, its writes within
    `max_writes`. The energy is never more than full clock's.
    Raises PlanningError naming what is wrong with the problem.
    """
    started = clock() if clock else 0.0

    def spent() -> float:
        return clock() - started if clock else 0.0

    inst = Instance.of(problem)
    free = relaxed(inst)
    budget_s = problem.time_budget_s
    nominal_s = budget_s * (_NOMINAL_SHARE if problem.write_latency_s > 0 else 1.0)
    found = _planned(inst, free, lambda: spent() < nominal_s)
    option = found.option
    if problem.write_latency_s > 0:
        price = _write_price(inst)
        option = repaired(inst, option, lambda: spent() < budget_s, write_price_j=price)
    plan, outcome = _checked(problem, inst.plan(option), inst.plan(inst.full))
    return _result(inst, plan, outcome, found, spent)


def lower_bound(problem: Problem, plan: Plan | None = None) -> float:
    """Joules below which no plan can go by the deadline, without noise; certified.

    plan: then only plans that change clocks where this one does are meant.
    """
    inst = Instance.of(problem)
    if plan is None:
        return inst.energy(_bound_at_deadline(inst, relaxed(inst)))
    found = groups.of_plan(problem, inst.graph, plan)
    return inst.energy(least_cost(inst.graph, found, inst.deadline_s))


def relaxed(inst: Instance) -> Relaxed:
    """The relaxation of free clocks by the deadline without noise."""
    scale = inst.energy(inst.total_cost(inst.full))
    hulls = Hulls.of(inst.problem, inst.graph)
    return relax_free(inst.network, hulls, inst.tightest_s, energy_scale_j=scale)


@dataclass(frozen=True)
class _Planned:
    """option: (n,) of the plan.

    bound, bound_writes: J of cost by the deadline without noise; no plan costs less, and none
        within `max_writes`.
    """

    option: Ints
    bound: float
    bound_writes: float


def _planned(inst: Instance, free: Relaxed, more_time: Callable[[], bool]) -> _Planned:
    write_price = _write_price(inst)
    bound = bound_writes = _bound_at_deadline(inst, free)
    small = exhaustive.cheapest(inst, write_price)
    max_writes = inst.problem.max_writes
    if max_writes is None:
        option = small if small is not None else _free_clocks(inst, free, more_time)
        return _Planned(option, bound, bound_writes)
    most = limit(inst, free, max_writes, more_time=more_time)
    option = small if small is not None else _runs(inst, most, write_price, more_time)
    return _Planned(option, bound, max(bound, most.cost_bound))


def _free_clocks(inst: Instance, free: Relaxed, more_time: Callable[[], bool]) -> Ints:
    """(n,) options, a clock for every computation; full clock when nothing better is on time."""
    placed = improve(inst, free, first.placed(inst, free), more_time)
    if inst.problem.noise == 0:
        return placed
    search = Search(inst, [placed], inst.full, free.deadline_price, 0.0, more_time)
    return search.improve()


def _runs(
    inst: Instance, most: BudgetLimit, write_price: float, more_time: Callable[[], bool]
) -> Ints:
    """(n,) options within the writes; full clock when nothing better is on time."""

    def value(option: Ints) -> float:
        return inst.total_cost(option) + write_price * inst.total_writes(option)

    pairs = starts(inst, most, inst.problem.max_writes or 0, write_price, more_time)
    safe = min((safe for _, safe in pairs), key=value)
    begun = [start for start, _ in pairs[:_SEARCHED_STARTS]]
    search = Search(inst, begun, safe, most.deadline_price, write_price, more_time)
    return search.improve()


def _bound_at_deadline(inst: Instance, free: Relaxed) -> float:
    """J of cost. Noise may move the deadline from where it was relaxed: along a tangent."""
    return free.bound - (inst.deadline_s - inst.tightest_s) * free.deadline_price


def _write_price(inst: Instance) -> float:
    """Joules that one clock write must save."""
    most = inst.problem.max_writes
    if most is None:
        return 0.0
    baseline = inst.energy(inst.total_cost(inst.full))
    return _WRITES_WORTH * baseline / max(1, most * inst.graph.ranks)


def _checked(problem: Problem, plan: Plan, full: Plan) -> tuple[Plan, Evaluation]:
    outcome = evaluate(problem, plan)
    if outcome.iteration_time_s <= outcome.deadline_s * (1 + _LATE):
        return plan, outcome
    return full, evaluate(problem, full)


def _result(
    inst: Instance,
    plan: Plan,
    outcome: Evaluation,
    found: _Planned,
    spent: Callable[[], float],
) -> PlanResult:
    problem = inst.problem
    full_cost = inst.total_cost(inst.full)
    written = plan_writes(plan, full_clock_at_end=problem.full_clock_at_end)
    noise_free = outcome.iteration_time_s
    if problem.noise:
        noise_free = evaluate(replace(problem, noise=0.0), plan).iteration_time_s
    return PlanResult(
        plan=plan,
        deadline_s=inst.deadline_s,
        iteration_time_s=outcome.iteration_time_s,
        energy_j=outcome.energy_j,
        energy_lower_bound_j=inst.energy(found.bound),
        energy_lower_bound_writes_j=inst.energy(found.bound_writes),
        baseline_time_s=inst.baseline_time_s,
        baseline_energy_j=full_cost + inst.waiting_power_w * inst.baseline_time_s,
        saving=1 - outcome.energy_j / inst.energy(full_cost, inst.baseline_time_s),
        clock_writes=max(written),
        margin_s=outcome.iteration_time_s - noise_free,
        solve_time_s=spent(),
        warnings=_warnings(inst, plan),
    )


def _warnings(inst: Instance, plan: Plan) -> tuple[str, ...]:
    found = [
        f"the curves of rank {rank} share no clock but the highest: it stays at full clock"
        for rank, nodes in enumerate(inst.graph.order)
        if not inst.full[nodes].any()
    ]
    if all(clock is None for clocks in plan.clocks for clock in clocks):
        found.append("no lower clock saves anything by this deadline")
    return tuple(found)
