"""How long events may wait to be taken together: a share of an iteration; not while learning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

NodeOf = Callable[..., Any]

MS = 1_000_000


@pytest.mark.parametrize(
    ("stretch", "expected_ns"),
    [(1.0, 0), (2.0, pytest.approx(0.004 * 2 * 740 * MS, rel=0.1)), (10.0, 25 * MS)],
)
def test_a_held_jobs_events_wait_a_share_of_its_iteration(
    node: NodeOf, stretch: float, expected_ns: object
) -> None:
    """Not at all where that would be too little to save anything, and never longer than 25 ms."""
    made = node(stretch=stretch)
    made.join()
    made.until("hold")
    assert made.controller.events_wait_ns == expected_ns


def test_nothing_waits_before_an_iteration_is_known_and_while_clocks_are_tried(
    node: NodeOf,
) -> None:
    made = node(stretch=10.0)
    assert made.controller.events_wait_ns == 0
    made.join()
    assert made.controller.events_wait_ns == 0
    made.until("learn")
    assert made.controller.events_wait_ns == 0


def test_the_most_impatient_job_decides(node: NodeOf) -> None:
    made = node(stretch=10.0)
    made.join()
    made.until("hold")
    assert made.controller.events_wait_ns == 25 * MS
    other = node()
    other.join()
    made.controller.jobs["me:other"] = other.job
    assert made.controller.events_wait_ns == 0
