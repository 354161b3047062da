"""Settings that change while a job runs: what becomes tighter is obeyed at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from perseusd.core.actions import RequestPlan, SetClock
from perseusd.core.jobs.why import WhyCode, code_of
from perseusd.core.model import Computation
from perseusd.core.settings import Settings
from perseusd.traces.recording import Header, Input, Reader, pack, pack_header
from perseusd.traces.replay import RecordedController, fresh_controller, replay

NodeOf = Callable[..., Any]


@pytest.fixture
def held(node: NodeOf) -> Any:
    """A job that is held under a plan with rank 0 at a lower clock; plans are answered by hand."""
    made = node(settings=Settings(slowdown_budget=0.02, max_writes_per_s=12.0))
    made.join()
    made.until("hold")
    made.iterate(2)
    made.answering = False
    made.asked.clear()
    return made


def reconfigured(node: Any, **changes: object) -> int:
    """Change settings while a clock is lowered; where the log was when that happened."""
    before = -1

    def hook(_: Any, rank: int, computation: Computation, starts: bool) -> bool:
        nonlocal before
        if before < 0 and node.lowered:
            before = len(node.log)
            changed = replace(node.controller.settings, **changes)
            node.do(node.controller.reconfigure(changed))
        return True

    node.iterate(1, hook)
    assert before >= 0, "nothing was lowered: the test would prove nothing"
    return before


def lowered_since(node: Any, before: int) -> list[SetClock]:
    return [write for write in node.writes(before) if write.clock_mhz is not None]


def test_a_smaller_budget_means_full_clocks_until_there_is_a_plan_for_it(held: Any) -> None:
    """At once, in the running iteration; the plan asked for has the new deadline, and with it the
    job goes on: it was never let go of."""
    wide = held.controller.jobs["me:job"]._hold.command
    before = reconfigured(held, slowdown_budget=0.005)
    first = held.since(before)
    assert [a.uuid for a in first if isinstance(a, SetClock)] == ["GPU-0"]
    assert not lowered_since(held, before)
    held.iterate(3)
    assert not lowered_since(held, before)
    assert held.state == "hold"
    asked = [a for a in held.since(before) if isinstance(a, RequestPlan)]
    assert asked[-1].problem.deadline_ratio < 1 + wide
    held.answer()
    held.iterate(2)
    assert lowered_since(held, before)
    assert [s.value for s, _ in held.job.states] == ["baseline", "learn", "hold"]
    assert any("smaller slowdown budget" in told for told in held.notices())


def test_a_larger_budget_is_used_from_the_next_plan_on(held: Any) -> None:
    """The present plan goes on meanwhile, and the guard allows what the budget does."""
    before = reconfigured(held, slowdown_budget=0.05)
    held.iterate()
    assert lowered_since(held, before)
    (asked,) = [a for a in held.since(before) if isinstance(a, RequestPlan)]
    held.answer()
    narrow = 1 + 0.4 * 0.02
    assert asked.problem.deadline_ratio > narrow
    held.stretch = 1.04  # more than the old budget's guard would bear
    held.iterate(6)
    assert held.state == "hold"


def test_a_jobs_own_budget_stays(node: NodeOf) -> None:
    """What the trainer said comes before the configuration, before and after a reload."""
    made = node(settings=Settings(slowdown_budget=0.02))
    made.join(slowdown_budget=0.03)
    made.until("hold")
    made.iterate(2)
    made.asked.clear()
    before = reconfigured(made, slowdown_budget=0.0)
    made.iterate()
    assert not [a for a in made.since(before) if isinstance(a, RequestPlan)]
    assert lowered_since(made, before)
    assert made.job._guard.limit == pytest.approx(0.035)


def test_fewer_clock_writes_mean_another_plan_and_too_few_mean_release(held: Any) -> None:
    """A plan is never followed that writes more often than is allowed now; where none can be, the
    job says so and waits at full clock."""
    before = reconfigured(held, max_writes_per_s=5.0)
    assert not lowered_since(held, before)
    asked = [a for a in held.since(before) if isinstance(a, RequestPlan)]
    assert asked[-1].problem.max_writes == held.job._writes() < 6
    held.answer()
    held.iterate(2)
    before = reconfigured(held, max_writes_per_s=0.5)
    assert held.state == "release"
    held.iterate(5)
    assert not lowered_since(held, before)
    assert code_of(held.job.reason) is WhyCode.TOO_SHORT
    held.do(held.controller.reconfigure(held.settings))
    held.answering = True
    held.until("hold", 30)


def test_learning_follows_its_limits(node: NodeOf) -> None:
    """A reload while a job learns changes what its next trial may cost, and when it has to end."""
    made = node()
    made.join()
    made.until("learn")
    made.do(made.controller.reconfigure(replace(made.settings, learning_slowdown=0.2)))
    assert made.job._known.explorer.slowdown == 0.2
    made.do(made.controller.reconfigure(replace(made.settings, max_learning_iterations=1)))
    made.until("hold", 3)


def test_a_plan_asked_for_within_wider_limits_is_not_taken(node: NodeOf) -> None:
    """While the planner works for a job that learns, the budget becomes smaller."""
    made = node(answering=False, settings=Settings(slowdown_budget=0.02))
    made.join()
    made.until("learn")
    while not made.asked:
        made.iterate()
    old = made.asked[-1]
    made.do(made.controller.reconfigure(replace(made.settings, slowdown_budget=0.005)))
    made.answer()
    made.iterate()
    assert made.state == "learn"
    assert made.asked[-1].request != old.request
    made.answer()
    assert made.state == "hold"


def test_the_silence_limit_holds_at_once(held: Any) -> None:
    """A reload that asks for less patience finds a rank that is silent already."""
    held.silent = {2}
    held.do(
        held.controller.reconfigure(replace(held.settings, silence_s=0.1, silence_iterations=1))
    )
    held.iterate(3)
    assert held.state == "release"
    assert "silent" in held.job.reason


def test_what_cannot_change_does_not(held: Any) -> None:
    """observe, the lowest clock and remembering are what the daemon was started with; settings that
    change nothing else ask for nothing."""
    before = len(held.log)
    other = replace(held.controller.settings, observe=True, min_clock_fraction=0.9, remember=True)
    held.do(held.controller.reconfigure(other))
    assert held.controller.settings == held.settings
    assert held.since(before) == []


def test_a_prediction_is_made_anew_within_other_limits(node: NodeOf) -> None:
    """Observing, what was foretold for the old budget is not shown for the new one."""
    made = node(settings=Settings(observe=True), answering=False)
    made.join()
    made.iterate(9)
    first = made.asked[-1]
    made.do(made.controller.reconfigure(replace(made.settings, slowdown_budget=0.1)))
    assert made.job.predicted is None
    made.iterate()
    assert made.asked[-1].request != first.request
    assert made.asked[-1].problem.deadline_ratio > first.problem.deadline_ratio


def test_a_recording_with_a_reload_in_it_replays_to_the_same_actions(node: NodeOf) -> None:
    """One by one, through bytes and back."""
    made = node(settings=Settings(slowdown_budget=0.02))
    inputs: list[Input] = []
    made.controller = RecordedController(made.settings, made.controller.gpus, sink=inputs.append)
    made.join()
    made.until("hold")
    made.iterate(2)
    reconfigured(made, slowdown_budget=0.005)
    made.iterate(3)
    reader = Reader()
    header = Header(made.settings, made.controller.gpus)
    told = list(reader.feed(pack_header(header) + b"".join(map(pack, inputs))))
    assert "reconfigure" in {each.name for each in told}
    again = [a for _, actions in replay(told, fresh_controller(header)) for a in actions]
    assert list(map(str, again)) == [str(action) for _, action in made.log]
