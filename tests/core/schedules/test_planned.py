"""Every schedule can be planned: the deadline is kept, whatever the order."""

from __future__ import annotations

from pathlib import Path

import pytest

from perseusd.core.model import Computation, Curve, Kind, Pipeline, Problem
from perseusd.core.planner import evaluate, solve
from perseusd.core.schedules import NAMES, by_name, pipeline, read_orders

RECORDED = Path(__file__).parent / "recorded"
OBSERVED = (
    "InterleavedZeroBubble-printed-2-4-2",
    "ZBVZeroBubble-printed-3-7-2",
    "ZBVZeroBubble-printed-4-8-2",
    "DualPipeV-printed-3-7-2",
    "DualPipeV-printed-4-8-2",
)
SECONDS = {
    "forward": 0.04,
    "recompute": 0.04,
    "backward": 0.08,
    "input_gradient": 0.045,
    "weight_gradient": 0.035,
    "iteration": 1.0,
}
WATTS = (280.0, 400.0)  # at the lower and the higher clock
BLOCKING_W = 80.0


def curve(kind: Kind) -> Curve:
    """Two clocks; stages are uneven, so that there is slack to use."""
    fast = SECONDS[kind.instruction] * (1 + 0.1 * (kind.rank % 3) + 0.05 * kind.chunk)
    slow = 1.2 * fast
    return Curve((1000, 1400), (slow, fast), (slow * WATTS[0], fast * WATTS[1]))


def problem(made: Pipeline, **settings: object) -> Problem:
    curves = {c.kind: curve(c.kind) for order in made.orders for c in order}
    return Problem(made, curves, [BLOCKING_W] * made.ranks, **settings)  # type: ignore[arg-type]


def lag_s(before: Computation, after: Computation) -> float:
    """Communication takes longer between distant ranks."""
    return 0.001 * abs(before.rank - after.rank)


def known(name: str) -> Pipeline:
    return pipeline(by_name(name, 4, 8, 2 if name.startswith("interleaved") else 1), lag_s)


def observed(name: str) -> Pipeline:
    orders, layout = read_orders((RECORDED / f"{name}.txt").read_text())
    return pipeline(orders, lag_s, layout)


MADE = [pytest.param(known(name), id=name) for name in NAMES] + [
    pytest.param(observed(name), id=name) for name in OBSERVED
]


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("ratio", [1.0, 1.1])
def test_plans_are_valid(made: Pipeline, ratio: float) -> None:
    """A clock for every computation, in time by the independent evaluator, between the bound and
    full clock; with slack to use, something is saved."""
    asked = problem(made, deadline_ratio=ratio)
    result = solve(asked)
    done = evaluate(asked, result.plan)
    assert [len(clocks) for clocks in result.plan.clocks] == [len(o) for o in made.orders]
    assert done.iteration_time_s <= done.deadline_s * (1 + 1e-9)
    assert result.energy_lower_bound_j <= done.energy_j * (1 + 1e-9)
    waited_j = result.baseline_energy_j + made.ranks * BLOCKING_W * max(
        0.0, done.deadline_s - result.baseline_time_s
    )
    assert done.energy_j <= waited_j * (1 + 1e-9)
    assert result.saving > 0.02
