"""The planner process: asked, hung, killed, unable to start; the daemon's loop never waits."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from perseusd.core.actions import RequestPlan
from perseusd.core.model import Curve, Kind, PlanResult, Problem
from perseusd.core.schedules import one_f_one_b, pipeline
from perseusd.daemon import planning
from perseusd.daemon.planner_process import AGAIN, NICENESS
from perseusd.daemon.planning import Planned, Planner

CLOCKS = (1005, 1110, 1215, 1320, 1410)


def request(number: int, job: str = "job", stages: int = 2, microbatches: int = 2) -> RequestPlan:
    curves = {}
    for stage in range(stages):
        top_s = 0.02 * (1 + stage % 2)
        times = tuple(top_s * CLOCKS[-1] / clock for clock in CLOCKS)
        energies = tuple(
            t * (90 + 300 * (c / 1410) ** 3) for t, c in zip(times, CLOCKS, strict=True)
        )
        for instruction in ("forward", "backward"):
            curves[Kind(stage, 0, instruction)] = Curve(CLOCKS, times, energies)
    steps = pipeline(one_f_one_b(stages, microbatches), 0.001)
    return RequestPlan(job, number, Problem(steps, curves, (80.0,) * stages, time_budget_s=0.2))


@pytest.fixture
def planner() -> Iterator[Planner]:
    made = Planner()
    made.start()
    prepared(made)
    yield made
    made.stop()


def answers(planner: Planner, count: int, patience_s: float = 30.0) -> list[Planned]:
    found: list[Planned] = []
    deadline = time.monotonic() + patience_s
    while len(found) < count:
        assert time.monotonic() < deadline
        found += planner.results()
        time.sleep(0.01)
    return found


def prepared(planner: Planner) -> None:
    """Wait for its kernels: on a fresh machine they are compiled first."""
    deadline = time.monotonic() + 100
    while not planner.prepared:
        assert time.monotonic() < deadline
        assert planner.results() == []
        time.sleep(0.01)


def pid(planner: Planner) -> int:
    assert planner._process is not None
    return planner._process.pid


def test_a_plan_for_a_request(planner: Planner) -> None:
    """The answer carries the request's ids and a plan of its shape."""
    planner.request(request(7))
    (planned,) = answers(planner, 1)
    assert (planned.job, planned.request) == ("job", 7)
    assert isinstance(planned.answer, PlanResult)
    assert [len(clocks) for clocks in planned.answer.plan.clocks] == [4, 4]


def test_what_has_compiled_begins_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the compiler's memory, which it would keep for as long as the daemon runs."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    planner = Planner()
    planner.start()
    try:
        prepared(planner)
        command = Path(f"/proc/{pid(planner)}/cmdline").read_bytes().split(b"\0")
        assert AGAIN.encode() in command
        planner.request(request(1))
        [planned] = answers(planner, 1)
        assert isinstance(planned.answer, PlanResult)
        assert os.getpriority(os.PRIO_PROCESS, pid(planner)) == min(os.nice(0) + NICENESS, 19)
    finally:
        planner.stop()


def test_a_newer_request_of_a_job_replaces_a_waiting_one(planner: Planner) -> None:
    """The one under way is finished; of those that wait only each job's newest is solved."""
    for number in (1, 2, 3):
        planner.request(request(number))
    planner.request(request(1, job="other"))
    found = [(p.job, p.request) for p in answers(planner, 3)]
    assert found == [("job", 1), ("job", 3), ("other", 1)]


def test_a_killed_planner_answers_with_the_reason_and_is_replaced(planner: Planner) -> None:
    """kill -9 while it plans: its request is answered in words, what waited is solved."""
    killed = pid(planner)
    os.kill(killed, signal.SIGSTOP)
    planner.request(request(1))
    planner.request(request(2))
    os.kill(killed, signal.SIGKILL)
    first, second = answers(planner, 2)
    assert (first.request, first.answer) == (1, "the planner process ended unexpectedly")
    assert isinstance(second.answer, PlanResult)
    assert pid(planner) != killed


def test_a_hung_planner_is_given_up(planner: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time limit, in words; the next request is solved by another process."""
    monkeypatch.setattr(planning, "TIME_LIMIT_S", 0.5)
    os.kill(pid(planner), signal.SIGSTOP)
    planner.request(request(1))
    (given_up,) = answers(planner, 1)
    assert given_up.answer == "planning took longer than 0.5 s"
    monkeypatch.setattr(planning, "TIME_LIMIT_S", 30.0)
    planner.request(request(2))
    assert isinstance(answers(planner, 1)[0].answer, PlanResult)


def test_preparing_has_a_limit_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that still compiles is not taken for one that hangs, but has a limit too."""
    monkeypatch.setattr(planning, "TIME_LIMIT_S", 0.0)
    monkeypatch.setattr(planning, "PREPARE_LIMIT_S", 1.0)
    planner = Planner()
    planner.start()
    os.kill(pid(planner), signal.SIGSTOP)
    planner.request(request(1))
    assert planner.results() == []
    assert answers(planner, 1)[0].answer == "planning took longer than 1 s"
    planner.stop()


def test_a_request_larger_than_the_socket_does_not_wait(planner: Planner) -> None:
    """Nor does stopping, though nobody has read it."""
    os.kill(pid(planner), signal.SIGSTOP)
    large = request(1, stages=32, microbatches=256)
    began_s = time.monotonic()
    planner.request(large)
    assert planner.results() == []
    planner.stop()
    assert time.monotonic() - began_s < 2


def test_a_planner_that_cannot_start_is_not_started_all_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A broken installation must not cost the training job its cores."""
    monkeypatch.setattr(planning, "CHILD", "perseusd.daemon.no_such_module")
    planner, pids = Planner(), set()
    planner.start()
    end_s = time.monotonic() + 1.5
    while time.monotonic() < end_s:
        planner.results()
        if planner._process is not None:
            pids.add(planner._process.pid)
        time.sleep(0.005)
    planner.stop()
    assert 1 <= len(pids) <= 3
