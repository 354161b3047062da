"""As many clock writes as pay: the rule, on few problems with small time budgets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count

import pytest

from perseusd.core.model import Problem
from perseusd.core.planner import auto, evaluate
from perseusd.core.planner.auto import solve_auto
from perseusd.core.planner.deadline import solve
from perseusd.core.planner.runs import plan_writes

GptProblem = Callable[..., Problem]
SECONDS = 1.0


def ticking(step_s: float) -> Callable[[], float]:
    """A clock that is always a step further: results do not depend on the machine."""
    ticks = count()
    return lambda: next(ticks) * step_s


def test_more_is_written_where_writing_takes_less(gpt3: GptProblem) -> None:
    """Free writes are used to the full, slow ones hardly; what is saved falls with the latency."""
    found = [
        solve_auto(
            gpt3("a100_sxm", 6, write_latency_s=latency, gpus_per_node=8, time_budget_s=SECONDS),
            clock=ticking(0.002),
        )
        for latency in (0.0, 0.015, 0.2)
    ]
    writes = [result.clock_writes for result in found]
    assert writes[0] > writes[1] >= writes[2]
    assert found[0].saving > found[1].saving > found[2].saving >= 0


@pytest.mark.parametrize("latency", [0.0, 0.05])
def test_a_plan_is_never_late_and_what_is_said_of_it_is_so(
    gpt3: GptProblem, latency: float
) -> None:
    """Both models keep the deadline; energy, writes and bounds are those of the plan returned."""
    problem = gpt3("a40", 6, write_latency_s=latency, gpus_per_node=8, time_budget_s=SECONDS)
    result = solve_auto(problem, clock=ticking(0.002))
    for told in (problem, replace(problem, write_latency_s=0.0)):
        outcome = evaluate(told, result.plan)
        assert outcome.iteration_time_s <= outcome.deadline_s * (1 + 1e-9)
    assert evaluate(problem, result.plan).energy_j == pytest.approx(result.energy_j)
    assert max(plan_writes(result.plan, full_clock_at_end=True)) == result.clock_writes
    assert result.energy_j >= result.energy_lower_bound_j * (1 - 1e-9)


def test_a_limit_on_writes_is_the_most_that_are_tried(gpt3: GptProblem) -> None:
    """A job that may write four times writes four times at most."""
    problem = gpt3("a100_sxm", 6, max_writes=4, write_latency_s=0.005, time_budget_s=SECONDS)
    assert solve_auto(problem, clock=ticking(0.002)).clock_writes <= 4


def test_of_plans_that_are_as_good_the_one_with_fewest_writes_is_taken(
    gpt3: GptProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousandth of the baseline is forgone for fewer writes, two thousandths are not."""
    problem = gpt3("a100_sxm", 6, write_latency_s=0.001, time_budget_s=0.1)
    made = solve(replace(problem, max_writes=2), clock=ticking(0.01))
    saves = {0: 0.0, 2: 0.08, 3: 0.09, 4: 0.1, 5: 0.1194, 6: 0.12, 8: 0.1202, 10: 0.1203}

    def solved(asked: Problem, *, clock: object) -> object:
        limit = asked.max_writes
        saving = saves.get(-1 if limit is None else limit, 0.1)
        energy = made.baseline_energy_j * (1 - saving)
        tried.append(limit)
        return replace(made, energy_j=energy, clock_writes=99 if limit is None else limit)

    tried: list[int | None] = []
    monkeypatch.setattr(auto, "solve", solved)
    assert solve_auto(problem).clock_writes == 5
    assert set(tried) == {6, 8, 10, 12, None, 5, 4, 3}


def test_the_time_is_shared_and_kept(gpt3: GptProblem) -> None:
    """Every plan has its share; when the time is over, what was found is what there is."""
    problem = gpt3("a100_sxm", 6, write_latency_s=0.005, time_budget_s=SECONDS)
    result = solve_auto(problem, clock=ticking(0.2))
    assert result.energy_j <= result.baseline_energy_j
