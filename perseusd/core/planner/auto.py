"""As many clock writes as pay.

A write costs time and energy while it lands (landing.py), so that more writes are not always
better: the saving over the number of writes per GPU rises, flattens, and falls. `solve_auto` walks
along it from where its top is likely, both ways, as long as that pays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from perseusd.core.model import PlanResult, Problem
from perseusd.core.planner.deadline import solve

# Writes per GPU and iteration that are tried; then no limit. One write is none: it has no way back.
_BUDGETS = (0, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64, 96, 128)
_FIRST = 6  # where writes cost something, the saving has mostly flattened here
# Of the baseline's energy, what fewer writes may forgo. As in deadline.py, which spends a budget.
_WRITES_WORTH = 0.001
# So many budgets in a row that do not pay end the walk: a plan may be unlucky.
_PATIENCE = 2
# Of the time budget, what one budget's plan may take; what is left goes to the best one's.
_SHARE = 0.1


def solve_auto(problem: Problem, *, clock: Callable[[], float] | None = None) -> PlanResult:
    """The plan whose number of clock writes pays, net of what writing them costs.

    The rule: of the plans found for several limits on writes, the one with the fewest writes of
    those whose energy is within a thousandth of the baseline's of the least. So where clock writes
    take no time, a limit is chosen only where going beyond it gains hardly anything.

    problem: `max_writes` is the most that may be tried, None for no limit.
    clock: seconds, monotonic; `time_budget_s`, of which each plan has a share, is kept by it.
        Without one every plan is sought until there is no improvement.
    Raises PlanningError naming what is wrong with the problem.
    """
    started = clock() if clock else 0.0
    walk = _Walk(problem, clock, started)
    budgets = _budgets(problem)
    first = budgets.index(_FIRST) if _FIRST in budgets else len(budgets) - 1
    if problem.write_latency_s == 0:
        first = len(budgets) - 1
    walk.along(budgets[first:])
    walk.along(budgets[:first][::-1])
    chosen = walk.refined()
    return replace(chosen, solve_time_s=walk.spent())


def _budgets(problem: Problem) -> list[int | None]:
    """Ascending; the last is the problem's own limit."""
    longest = max(map(len, problem.pipeline.orders), default=0)
    most = longest + 1 if problem.max_writes is None else min(problem.max_writes, longest + 1)
    return [*(count for count in _BUDGETS if count < most), problem.max_writes]


@dataclass
class _Walk:
    """The plans found so far."""

    problem: Problem
    clock: Callable[[], float] | None
    started: float
    found: dict[int | None, PlanResult] = field(default_factory=dict)

    def spent(self) -> float:
        return self.clock() - self.started if self.clock else 0.0

    def along(self, budgets: Sequence[int | None]) -> None:
        """Try budgets in this order until they stop paying."""
        share = _SHARE * self.problem.time_budget_s
        in_vain = 0
        for budget in budgets:
            if self.found and self.spent() + share > self.problem.time_budget_s:
                return
            least = min((r.energy_j for r in self.found.values()), default=float("inf"))
            self.found[budget] = self._solved(budget, share)
            pays = self.found[budget].energy_j < least or self._chosen() == budget
            in_vain = 0 if pays else in_vain + 1
            if in_vain == _PATIENCE:
                return

    def refined(self) -> PlanResult:
        """The best plan; with what is left of the time, where it improves on it."""
        budget = self._chosen()
        left = self.problem.time_budget_s - self.spent()
        if self.clock and left > _SHARE * self.problem.time_budget_s:
            again = self._solved(budget, left)
            if again.energy_j < self.found[budget].energy_j:
                self.found[budget] = again
        return self.found[budget]

    def _solved(self, budget: int | None, time_budget_s: float) -> PlanResult:
        limited = replace(self.problem, max_writes=budget, time_budget_s=time_budget_s)
        return solve(limited, clock=self.clock)

    def _chosen(self) -> int | None:
        """The budget of the plan that the rule takes."""
        least = min(result.energy_j for result in self.found.values())
        enough = [
            (result.clock_writes, result.energy_j, budget)
            for budget, result in self.found.items()
            if result.energy_j <= least + _WRITES_WORTH * result.baseline_energy_j
        ]
        return min(enough, key=lambda one: one[:2])[2]
