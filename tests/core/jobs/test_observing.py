"""Observe-only mode in the core: everything is followed and told, and no clock is ever written."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from perseusd.core.actions import RequestPlan, SetClock
from perseusd.core.controller import Controller
from perseusd.core.critical import CriticalPath, slack_of_ranks
from perseusd.core.graph import Graph
from perseusd.core.jobs.observing import NEW_NORMAL, RECENT
from perseusd.core.model import Plan, PlanResult, Problem
from perseusd.core.schedules import one_f_one_b, pipeline
from perseusd.core.settings import Settings

OBSERVING = Settings(observe=True, baseline_iterations=3, max_writes_per_s=12)


@pytest.fixture
def observed(node):
    """A job that is observed, its planner answering at once."""
    made = node(settings=OBSERVING)
    made.join()
    return made


def planned(problem: Problem, saving: float) -> PlanResult:
    clocks = tuple((None,) * len(order) for order in problem.pipeline.orders)
    return PlanResult(Plan(clocks), 1, 1, 1e9, 1, 1, 1, 1, saving, 2, 0, 0)


def answered(node, *savings: float) -> None:
    """The planner's next answers, one a request."""
    for saving in savings:
        node.answer(planned(node.asked[-1].problem, saving))


def test_it_never_writes_and_never_leaves_baseline(observed) -> None:
    """Sixty iterations, forecasts planned and answered: no clock asked for, no plan in force."""
    observed.iterate(60)
    assert observed.writes() == []
    assert observed.state == "baseline"
    assert [state.value for state, _ in observed.job.states] == ["baseline"]
    assert observed.job.plan_in_force is None
    assert observed.job.deadline_s is None
    assert "no clock is ever written" in observed.job.reason


def test_path_slack_and_figures_are_of_what_ran(observed) -> None:
    """Shares add up, every stage has a slack, the last iteration's time and energy are known."""
    observed.iterate(12)
    job = observed.job
    assert sum(share for _, share in job.critical_path()) == pytest.approx(1)
    for _ in range(observed.stages):
        slack = job.slack()
    assert len(slack) == observed.stages
    assert all(share is not None for share in slack)
    assert job.ledger.last is not None
    assert job.ledger.last.time_s == pytest.approx(0.04 * 6 + 0.08 * 6, rel=0.1)
    assert job.ledger.last.energy_j


def test_slack_of_a_large_job_is_found_bit_by_bit() -> None:
    """One question costs little; after as many as there are ranks all is known, and right."""
    graph = Graph.from_pipeline(pipeline(one_f_one_b(12, 48), 0.001))
    path = CriticalPath(graph)
    assert path.slack_of_late() == ()
    durations = np.full(len(graph), 0.05) * np.where(graph.rank == 5, 1.3, 1.0)
    path.add(durations)
    assert sum(share is not None for share in path.slack_of_late()) == 1
    for _ in range(graph.ranks):
        found = path.slack_of_late()
    assert found == pytest.approx(slack_of_ranks(graph, durations))


def test_a_forecast_is_three_plans_and_none_is_adopted(observed) -> None:
    """As the prior says, worse, better: one request after another, the answers its interval."""
    observed.answering = False
    observed.iterate(6)
    asked = [a for _, a in observed.log if isinstance(a, RequestPlan)]
    assert len(asked) == 1, "the next is asked when this one is answered"
    answered(observed, 0.12, 0.05, 0.2)
    forecast = observed.job.predicted
    assert forecast is not None
    assert (forecast.low, forecast.saving, forecast.high) == (0.05, 0.12, 0.2)
    assert "A100" in forecast.source
    assert observed.job.no_prediction == ""
    assert observed.asked == []
    assert observed.writes() == []


def test_a_forecast_is_made_anew_as_more_is_known(observed) -> None:
    """At some five measured iterations, then four times as many; not at every iteration."""
    observed.iterate(60)
    made = sum(isinstance(action, RequestPlan) for _, action in observed.log)
    assert 6 <= made <= 9
    assert observed.job.predicted is not None
    assert observed.job.predicted.iterations >= 20


def test_nothing_is_foretold_of_a_gpu_that_nothing_is_published_about(observed) -> None:
    """No request, no prediction, and words that say so; the rest is observed all the same."""
    known = observed.controller.gpus.items()
    facts = {uuid: dataclasses.replace(gpu, model="Whatever 9000") for uuid, gpu in known}
    observed.controller = Controller(OBSERVING, facts)
    observed.join()
    observed.iterate(10)
    assert not any(isinstance(action, RequestPlan) for _, action in observed.log)
    assert observed.job.predicted is None
    assert "'Whatever 9000'" in observed.job.no_prediction
    assert observed.job.critical_path()


def test_what_would_keep_it_from_acting_is_told(node) -> None:
    """Iterations too short for two clock writes: nothing is foretold, and the limit is named."""
    short = node(settings=dataclasses.replace(OBSERVING, max_writes_per_s=1.0))
    short.join()
    short.iterate(8)
    assert short.job.predicted is None
    assert "max_writes_per_s" in short.job.no_prediction


def test_a_planner_that_fails_is_told_and_asked_again_later(observed) -> None:
    """Its words are the obstacle; the next time comes with more iterations."""
    observed.answering = False
    observed.iterate(6)
    observed.answer("it hung")
    assert (observed.job.predicted, observed.job.no_prediction) == (None, "it hung")
    observed.iterate(2)
    assert observed.asked == []
    observed.answering = True
    observed.iterate(20)
    assert observed.job.predicted is not None


@pytest.mark.parametrize("stretch", [1.5, 0.7])
def test_a_changed_batch_is_measured_anew(observed, stretch: float) -> None:
    """Same order, other times: soon the baseline is of the new ones alone.

    Later where it is slower throughout: at first that may be a replica that straggles.
    """
    observed.iterate(20)
    before = observed.job.ledger.sample("baseline").mean
    observed.stretch = stretch
    observed.iterate(NEW_NORMAL + RECENT + 12)
    assert any("measured anew" in text for text in observed.notices())
    baseline = observed.job.ledger.sample("baseline")
    assert baseline.mean == pytest.approx(stretch * before, rel=0.03)
    assert baseline.relative_spread() < 0.01
    assert observed.job.predicted is not None, "and what acting saves is foretold anew"
    assert observed.writes() == []


def test_noise_is_no_change(observed) -> None:
    """Iterations that differ by ten percent from each other, for long: measured once."""
    for n in range(120):
        observed.stretch = 1 + 0.1 * ((n * 7919) % 11 / 10 - 0.5)
        observed.iterate()
    assert not any("measured anew" in text for text in observed.notices())


def test_a_changed_order_is_followed(observed) -> None:
    """Twice the microbatches: understood again, and path and baseline are of the new iteration."""
    observed.iterate(12)
    before = observed.job.ledger.sample("baseline").mean
    observed.graph = type(observed.graph).from_pipeline(
        pipeline(one_f_one_b(observed.stages, 8), 0.0005)
    )
    observed.iterate(20)
    assert observed.state == "baseline"
    assert observed.job.ledger.sample("baseline").mean > 1.4 * before
    assert sum(share for _, share in observed.job.critical_path()) == pytest.approx(1)
    assert not any(isinstance(a, SetClock) and a.clock_mhz for _, a in observed.log)


def test_an_answer_that_comes_too_late_is_none(observed) -> None:
    """What was asked before the job lost its order does not answer what is asked after."""
    observed.answering = False
    observed.iterate(6)
    late = observed.asked[-1]
    observed.controller.release_all("for the test's sake")
    stale = planned(late.problem, 0.9)
    observed.do(observed.controller.planned(late.job, late.request, stale))
    observed.answering = True
    observed.iterate(20)
    assert observed.job.predicted is not None
    assert observed.job.predicted.high < 0.5


def test_memory_is_bounded(node) -> None:
    """What a week of iterations leaves behind is no more than some hundreds do."""
    short = node(settings=OBSERVING, microbatches=2, stages=2)
    short.join()
    short.iterate(240)
    job = short.job
    known = job._known
    assert known is not None
    kept = known.knowledge
    assert all(len(s) <= 64 for clocks in kept.durations.seen.values() for s in clocks.values())
    sizes = [len(ledger._blocks) for ledger in kept.ledgers.values()]
    assert max(sizes) <= 200
    assert len(job.observations) == 0
    assert len(job.states) <= 64
