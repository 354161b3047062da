"""A job of any order is understood, learned and slowed by the daemon as 1F1B is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from perseusd.core.schedules import early_recompute_one_f_one_b, pipeline, read_orders, zb_h1

RECORDED = Path(__file__).parent / "recorded"
LAG_S = 0.0005


def observed(name: str):
    orders, layout = read_orders((RECORDED / f"{name}.txt").read_text())
    return pipeline(orders, LAG_S, layout)


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize(
    "made",
    [
        pytest.param(pipeline(zb_h1(3, 8), LAG_S), id="zb-h1"),
        pytest.param(pipeline(early_recompute_one_f_one_b(3, 4), LAG_S), id="recompute"),
        pytest.param(observed("Interleaved1F1B-printed-2-4-2"), id="interleaved"),
        pytest.param(observed("InterleavedZeroBubble-printed-2-4-2"), id="zero-bubble"),
        pytest.param(observed("ZBVZeroBubble-printed-2-4-2"), id="zbv"),
        pytest.param(observed("DualPipeV-printed-2-4-2"), id="dualpipev"),
    ],
)
def test_any_order_is_followed_to_the_hold(node: Callable, made, said: bool) -> None:
    """From the first event to a plan in force, with the trainer's iteration numbers or without;
    the planner is asked about the very pipeline that ran."""
    job = node(pipeline=made, schedule=None, said=said)
    job.join()
    job.until("hold")
    known = job.job._known.pipeline
    assert known.orders == made.orders
    assert {(e.before, e.after) for e in known.edges} == {(e.before, e.after) for e in made.edges}
    assert not job.refusals()
