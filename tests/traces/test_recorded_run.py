"""Our own recordings as runs: iterations as they truly were, at full clock whatever we did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from perseus_hooks.events import Goodbye

from perseusd.core.model import Kind
from perseusd.emulation.fasttime import Conditions, Slow
from perseusd.traces.reading import read_trace
from perseusd.traces.recording import DROPPED, Input
from perseusd.traces.trace import Run

Maker = Callable[..., Any]

STRAGGLES = 34
"""The iteration from which the recorded run's stage 1 is slow."""


def medians(run: Run, since: int, until: int) -> dict[Kind, float]:
    seconds: dict[Kind, list[float]] = {}
    for observation in run.observations:
        if since <= observation.number < until:
            for computation, taken in observation.computations:
                seconds.setdefault(computation.kind, []).append(taken)
    return {kind: median(own) for kind, own in seconds.items()}


def test_iterations_are_those_of_the_run(whole_run: Any, tmp_path: Path) -> None:
    """Every iteration but the first (it warms up) in order, each as long as it truly took from
    start to start, with every computation of every stage; the last has no next to end it."""
    trace = read_trace(whole_run.write(tmp_path / "x"))
    (run,) = trace.runs
    truth = whole_run.run.done
    assert "emulated" in trace.kind
    assert [o.number for o in run.observations] == [i.number for i in truth[1:]]
    for observation, true in zip(run.observations[:-1], truth[1:], strict=False):
        assert observation.time_s == pytest.approx(true.time_s, rel=0.002)
        assert len(observation.computations) == 4 * 8 * 2
    assert run.observations[-1].time_s is None
    assert run.ranks == {(0, stage): stage for stage in range(4)}


def test_our_own_slowing_is_taken_out(whole_run: Any, tmp_path: Path) -> None:
    """What computations would have taken at full clock is, under a plan in hold, what they took in
    the baseline, to 2 %, though clocks were lowered; a slow rank remains slow by its factor."""
    (run,) = read_trace(whole_run.write(tmp_path / "x")).runs
    states = {i.number: i.state for i in whole_run.run.done}
    hold = next(number for number, state in states.items() if state == "hold")
    assert hold < STRAGGLES - 4
    before, held = medians(run, 1, 6), medians(run, hold + 1, STRAGGLES)
    slow = medians(run, STRAGGLES, 99)
    lowered = {told.arguments[1] for told in whole_run.inputs if told.name == "written"}
    assert len(lowered) > 3
    for kind, seconds in before.items():
        assert held[kind] == pytest.approx(seconds, rel=0.02)
        factor = 1.5 if kind.rank == 1 else 1.0
        assert slow[kind] == pytest.approx(factor * seconds, rel=0.03)
    assert not any(o.uncertain for o in run.observations)


def test_a_recording_begun_in_the_middle_is_read(make_recording: Maker, tmp_path: Path) -> None:
    """Begun while a plan is held: the iterations since then are there."""
    made = make_recording(Conditions(noise=0.01, seed=1), 44, since=30)
    assert made.run.done[-1].state == "hold"
    (run,) = read_trace(made.write(tmp_path / "x")).runs
    numbers = [o.number for o in run.observations]
    assert numbers == list(range(numbers[0], 44))
    assert numbers[0] <= 33


def test_what_was_never_seen_at_full_clock_is_uncertain(
    make_recording: Maker, tmp_path: Path
) -> None:
    """A GPU whose clock was lowered before the recording began and stayed so: its rank's times are
    as they were, and marked, so that it is not taken for slow."""
    made = make_recording(Conditions(noise=0.01, seed=3), 5)
    clock_mhz = made.header.gpus["GPU-1"].supported_mhz[20]
    made.inputs.insert(4, Input("written", ("GPU-1", clock_mhz, 0, 1)))
    (run,) = read_trace(made.write(tmp_path / "x")).runs
    assert {o.uncertain for o in run.observations} == {frozenset({1})}
    assert medians(run, 0, 9)[Kind(1, 0, "forward")] > 0


def test_replicas_are_one_run_and_reasons_are_kept(make_recording: Maker, tmp_path: Path) -> None:
    """Two replicas of one job, each iteration of both, and why a GPU said that it was slow."""
    slow = Slow(replica=1, rank=2, factor=1.3, start=8, end=12, reason="sw_thermal")
    made = make_recording(Conditions(noise=0.01, seed=2, replicas=2, slow=(slow,)), 14)
    (run,) = read_trace(made.write(tmp_path / "x")).runs
    assert run.replicas_told
    assert {o.replica for o in run.observations} == {0, 1}
    assert run.ranks[1, 2] == 6
    hot = {(o.replica, o.number) for o in run.observations if "sw_thermal" in o.reasons.get(2, ())}
    assert hot == {(1, number) for number in range(8, 12)}


def test_a_job_that_comes_again_is_another_run(make_recording: Maker, tmp_path: Path) -> None:
    """All its processes say goodbye and then say hello anew: two runs, told apart by name."""
    made = make_recording(Conditions(noise=0.01, seed=3), 6)
    hellos = [told for told in made.inputs if told.name == "hello"]
    goodbyes = [Input("stage_event", (told.arguments[0], Goodbye(10**6, 1), 1)) for told in hellos]
    made.inputs += [*goodbyes, *made.inputs]
    trace = read_trace(made.write(tmp_path / "x"))
    assert [run.name for run in trace.runs] == ["fast:job-3", "fast:job-3, start 2"]
    first, again = ([o.number for o in run.observations] for run in trace.runs)
    assert first == again == [1, 2, 3, 4, 5]


def test_what_is_missing_is_told(make_recording: Maker, tmp_path: Path) -> None:
    """Inputs that the recorder lost, and a job of which no whole iteration is there."""
    made = make_recording(Conditions(noise=0.01, seed=3), 1)
    made.inputs.append(Input(DROPPED, (12,)))
    trace = read_trace(made.write(tmp_path / "x"))
    assert trace.runs == []
    assert any("12 inputs are missing" in note for note in trace.notes)
    assert any("fast:job-3: no iteration" in note for note in trace.notes)
