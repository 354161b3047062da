"""How long events may wait to be taken together: a share of an iteration; not while learning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from perseusd.core.jobs.following import MOST_WAIT_NS, WAIT_SHARE

NodeOf = Callable[..., Any]

MS = 1_000_000


def held(node: NodeOf, stretch: float) -> Any:
    """Every rank was heard of under the plan."""
    made = node(stretch=stretch)
    made.join()
    made.until("hold")
    made.iterate()
    return made


@pytest.mark.parametrize(
    ("stretch", "expected_ns"),
    [(1.0, 0), (2.0, pytest.approx(WAIT_SHARE * 2 * 740 * MS, rel=0.1)), (10.0, MOST_WAIT_NS)],
)
def test_a_held_jobs_events_wait_a_share_of_its_iteration(
    node: NodeOf, stretch: float, expected_ns: object
) -> None:
    """Not at all where that would be too little to save anything, and only up to a limit."""
    made = held(node, stretch)
    assert made.controller.events_wait_ns(made.now_ns) == expected_ns


def test_nothing_waits_before_an_iteration_is_known_and_while_clocks_are_tried(
    node: NodeOf,
) -> None:
    made = node(stretch=10.0)
    assert made.controller.events_wait_ns(made.now_ns) == 0
    made.join()
    assert made.controller.events_wait_ns(made.now_ns) == 0
    made.until("learn")
    assert made.controller.events_wait_ns(made.now_ns) == 0


def test_the_most_impatient_job_decides(node: NodeOf) -> None:
    made = held(node, 10.0)
    assert made.controller.events_wait_ns(made.now_ns) == MOST_WAIT_NS
    other = node()
    other.join()
    made.controller.jobs["me:other"] = other.job
    assert made.controller.events_wait_ns(made.now_ns) == 0
