"""A job of which no lower clock was learned is told which of several reasons that has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from perseusd.core.jobs.why import WhyCode, code_of
from perseusd.core.settings import Settings

NodeOf = Callable[..., Any]


def after(node: Any, iterations: int) -> str:
    node.join()
    node.iterate(iterations)
    assert node.state == "learn"
    reason: str = node.job.reason
    return reason


def test_without_slack(node: NodeOf) -> None:
    """One microbatch goes from stage to stage and back: whatever is slowed, all waits for it."""
    settings = Settings(learning_slowdown=0.001)
    why = after(node(microbatches=1, stretch=10, settings=settings), 12)
    assert "there is no slack in this job" in why
    assert code_of(why) is WhyCode.NOTHING_WAITS


def test_with_slack_too_short_for_a_trial(node: NodeOf) -> None:
    """Computations of a millisecond: the slack of warm-up and cool-down holds no trial."""
    why = after(node(microbatches=256, stretch=0.02), 8)
    assert "slack enough for a trial, which takes at least 50 ms" in why
    assert code_of(why) is WhyCode.LITTLE_SLACK


@pytest.mark.parametrize(("most", "told"), [(1, "one iteration"), (3, "3 iterations")])
def test_when_learning_ended_before_any_lower_clock_was_seen(
    node: NodeOf, most: int, told: str
) -> None:
    """There is slack, and trials were planned in it; with more of them learning goes on."""
    made = node(settings=Settings(max_learning_iterations=most))
    written = made.controller.written
    made.controller.written = lambda uuid, _clock_mhz, *when: written(uuid, None, *when)
    why = after(made, 15)
    assert f"learning ended after {told} before anything was learned" in why
    assert code_of(why) is WhyCode.NOTHING_TRIED
    made.controller.written = written
    made.do(made.controller.reconfigure(replace(made.settings, max_learning_iterations=most + 5)))
    made.until("hold", 10)


def test_when_no_more_trials_found_room(node: NodeOf) -> None:
    """More iterations of learning would change nothing, and are not what is advised."""
    made = node()
    written = made.controller.written
    made.controller.written = lambda uuid, _clock_mhz, *when: written(uuid, None, *when)
    made.join()
    made.until("learn")
    made.iterate(2)
    made.job._known.explorer._teaches = 0.0  # as after a trial without a window
    made.iterate(2)
    why = made.job.reason
    assert "nowhere was there slack enough for a trial any more" in why
    assert code_of(why) is WhyCode.LITTLE_SLACK


def test_without_a_lower_clock_that_is_allowed(node: NodeOf) -> None:
    """The setting that leaves none is named."""
    why = after(node(settings=Settings(min_clock_fraction=1.0)), 12)
    assert "[limits] min_clock_fraction leaves its GPUs none" in why
