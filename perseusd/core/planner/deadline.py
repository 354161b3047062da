"""The deadline problem from beginning to end: bound, cut, round, search, check.

1. Relax: every computation mixes the points of its own curve (bound.py). This bounds what any plan
   can save, and says how long each computation should take and what a second of it is worth.
2. Cut each rank's order into runs near that ideal (cuts.py), relax again with the cut fixed, and
   cut again half way between both answers; the cut whose relaxation costs least is kept.
3. Round its clocks to real ones and search from there, noise included (search.py).
4. Check with the independent evaluator; a plan that were late would be dropped for full clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perseusd.core.model import Plan, PlanResult, Problem
from perseusd.core.planner import exhaustive, first, groups, noise
from perseusd.core.planner.bound import least_cost
from perseusd.core.planner.cuts import Guide, cut
from perseusd.core.planner.evaluation import Evaluation, evaluate
from perseusd.core.planner.hull import curvature
from perseusd.core.planner.instance import Instance
from perseusd.core.planner.relax import Group, Relaxed, relax
from perseusd.core.planner.runs import plan_writes
from perseusd.core.planner.search import Search

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

# Weights of the distance from the ideal durations, in units of each curve's curvature: about as
# stiff as the curve itself is best on most jobs, hardly any or nearly rigid on some.
_STIFFNESS = (1.0, 64.0, 0.0)
_CUTS_EACH = 2  # how often to cut again with the relaxation of the cut before
# Of the baseline's energy, what all clock writes that hardly pay may forgo together.
_WRITES_WORTH = 0.001
# Of the time budget, what may go into finding cuts; the search has the rest.
_CUTTING_SHARE = 0.4
# The search starts from the best few cuts, while less than this share of the budget is spent.
_SEARCHED_CUTS, _SEARCHING_SHARE = 3, 0.5
# Under noise the relaxation is solved on a few of the samples: at most so many, and so many start
# times in all, which keeps it within a few tenths of a second.
_RELAXED_SAMPLES, _RELAXED_STARTS = 8, 2000
_LATE = 1e-9  # relative, by the independent evaluator


def solve(problem: Problem, *, clock: Callable[[], float] | None = None) -> PlanResult:
    """The plan of least energy found that keeps the deadline, with what bounds it.

    clock: seconds, monotonic; `time_budget_s` is kept by it, and `solve_time_s` read from it.
        Without one the search runs until it finds no improvement, the same on every machine.
    The plan's mean iteration over the samples of the noise is within the deadline, its writes
    within `max_writes`. The energy is never more than full clock's.
    Raises PlanningError naming what is wrong with the problem.
    """
    started = clock() if clock else 0.0

    def spent() -> float:
        return clock() - started if clock else 0.0

    inst = Instance.of(problem)
    ideal_groups = groups.free(problem, inst.graph)
    option = _options(inst, ideal_groups, spent)
    plan, outcome = _checked(problem, inst.plan(option), inst.plan(inst.full))
    return _result(inst, plan, outcome, spent)


def lower_bound(problem: Problem, plan: Plan | None = None) -> float:
    """Joules below which no plan can go by the deadline, without noise; certified.

    plan: then only plans that change clocks where this one does are meant.
    """
    return _lower_bound(Instance.of(problem), plan)


def _lower_bound(inst: Instance, plan: Plan | None) -> float:
    if plan is None:
        found = groups.free(inst.problem, inst.graph)
    else:
        found = groups.of_plan(inst.problem, inst.graph, plan)
    return inst.energy(least_cost(inst.graph, found, inst.deadline_s))


def _options(inst: Instance, ideal_groups: Sequence[Group], spent: Callable[[], float]) -> Ints:
    """(n,) options of the best plan found; full clock when nothing better is."""
    write_price = _write_price(inst)
    small = exhaustive.cheapest(inst, write_price)
    if small is not None:
        return small
    budget = inst.problem.time_budget_s
    relaxation = _Relaxation.of(inst)
    ideal = relaxation.solve(ideal_groups)
    if inst.problem.max_writes is None:
        cuts = [_Cut(ideal_groups, ideal)]
    else:
        found = _cuts(relaxation, ideal, write_price, lambda: spent() < _CUTTING_SHARE * budget)
        cuts = sorted(found, key=lambda c: c.relaxed.cost)[:_SEARCHED_CUTS]
    best = inst.full
    for count, candidate in enumerate(cuts):
        if count and spent() > _SEARCHING_SHARE * budget:
            break
        start, safe = _starts(inst, candidate)
        search = Search(
            inst,
            start,
            safe,
            late_price=ideal.deadline_price,
            write_price_j=write_price,
            more_time=lambda share: spent() < share * budget,
        )
        best = min(best, search.improve(), key=search.value)
    return best


def _write_price(inst: Instance) -> float:
    """Joules that one clock write must save."""
    limit = inst.problem.max_writes
    if limit is None:
        return 0.0
    baseline = inst.energy(inst.total_cost(inst.full))
    return _WRITES_WORTH * baseline / max(1, limit * inst.graph.ranks)


@dataclass(frozen=True)
class _Relaxation:
    """The relaxation on as many samples of the noise as are affordable.

    factor: (n, K).  deadline_s: what full clock takes on average over these samples × the ratio.
    """

    inst: Instance
    factor: Floats
    deadline_s: float

    @classmethod
    def of(cls, inst: Instance) -> _Relaxation:
        count = max(1, min(_RELAXED_SAMPLES, _RELAXED_STARTS // len(inst.graph)))
        if inst.problem.noise == 0 or count == 1:
            return cls(inst, np.ones((len(inst.graph), 1)), inst.tightest_s)
        factor = noise.fewer(inst.factor, count)
        fastest = inst.durations(inst.full)[:, None]
        baseline = float(inst.graph.makespan(fastest * factor).mean())
        return cls(inst, factor, baseline * inst.problem.deadline_ratio)

    def solve(self, shared: Sequence[Group]) -> Relaxed:
        return relax(self.inst.graph, shared, self.deadline_s, self.factor)


@dataclass(frozen=True)
class _Cut:
    """The runs of a cut, with the relaxation of their clocks."""

    runs: Sequence[Group]
    relaxed: Relaxed


def _cuts(
    relaxation: _Relaxation, ideal: Relaxed, write_price: float, more_time: Callable[[], bool]
) -> Iterator[_Cut]:
    """Cuts to choose from, at least one."""
    inst = relaxation.inst
    bend = _curvatures(inst)
    for count, stiffness in enumerate(_STIFFNESS):
        guide = Guide(ideal.durations, ideal.price, stiffness * bend)
        for again in range(_CUTS_EACH):
            if (count or again) and not more_time():
                return
            plan = inst.plan(cut(inst, guide, inst.problem.max_writes or 0, write_price))
            runs = groups.of_plan(inst.problem, inst.graph, plan)
            relaxed = relaxation.solve(runs)
            yield _Cut(runs, relaxed)
            guide = guide.blended(relaxed.durations, relaxed.price)


def _starts(inst: Instance, candidate: _Cut) -> tuple[Ints, Ints]:
    """(n,) options near the relaxation's, perhaps late, and some that are not late."""
    runs, durations = candidate.runs, candidate.relaxed.durations
    start = first.rounded(inst, runs, durations)
    safe = first.not_late(inst, runs, durations)
    if inst.problem.max_writes is None and inst.problem.noise == 0:
        start = safe = min(safe, first.placed(inst, candidate.relaxed), key=inst.total_cost)
    return start, safe


def _curvatures(inst: Instance) -> Floats:
    """(n,) of each computation's own curve."""
    hulls = groups.free(inst.problem, inst.graph)
    return np.array([curvature(group.time[0], group.cost) for group in hulls])


def _checked(problem: Problem, plan: Plan, full: Plan) -> tuple[Plan, Evaluation]:
    outcome = evaluate(problem, plan)
    if outcome.iteration_time_s <= outcome.deadline_s * (1 + _LATE):
        return plan, outcome
    return full, evaluate(problem, full)


def _result(
    inst: Instance,
    plan: Plan,
    outcome: Evaluation,
    spent: Callable[[], float],
) -> PlanResult:
    problem = inst.problem
    full_cost = inst.total_cost(inst.full)
    written = plan_writes(plan, full_clock_at_end=problem.full_clock_at_end)
    bound_j = _lower_bound(inst, None)
    bound_writes = bound_j if problem.max_writes is None else _lower_bound(inst, plan)
    noise_free = evaluate(_without_noise(problem), plan).iteration_time_s
    return PlanResult(
        plan=plan,
        deadline_s=inst.deadline_s,
        iteration_time_s=outcome.iteration_time_s,
        energy_j=outcome.energy_j,
        energy_lower_bound_j=bound_j,
        energy_lower_bound_writes_j=bound_writes,
        baseline_time_s=inst.baseline_time_s,
        baseline_energy_j=full_cost + inst.waiting_power_w * inst.baseline_time_s,
        saving=1 - outcome.energy_j / inst.energy(full_cost, inst.baseline_time_s),
        clock_writes=max(written),
        margin_s=outcome.iteration_time_s - noise_free,
        solve_time_s=spent(),
        warnings=_warnings(inst, plan),
    )


def _without_noise(problem: Problem) -> Problem:
    return replace(problem, noise=0.0)


def _warnings(inst: Instance, plan: Plan) -> tuple[str, ...]:
    found = [
        f"the curves of rank {rank} share no clock but the highest: it stays at full clock"
        for rank, nodes in enumerate(inst.graph.order)
        if not inst.full[nodes].any()
    ]
    if all(clock is None for clocks in plan.clocks for clock in clocks):
        found.append("no lower clock saves anything by this deadline")
    return tuple(found)
