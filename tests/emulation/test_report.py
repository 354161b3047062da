"""The report's arithmetic on made-up iterations: one GPU, one computation each."""

from __future__ import annotations

import json
from typing import Protocol

import pytest

from perseusd.emulation.coordinator import Straggler
from perseusd.emulation.records import IterationRecord
from perseusd.emulation.report import Bounds, DemoReport, Setting, report

STATES = (("baseline", 0), ("learn", 5), ("hold", 8))
SETTING = Setting("small", "a100-sxm", 1, 4, blocking_power_w=80.0)
BOUNDS = Bounds(0.16, 0.12)


class Recorder(Protocol):
    records: list[IterationRecord]

    def add(
        self,
        count: int,
        time_s: float,
        energy_j: float,
        clock_mhz: int = 1410,
        writes: int = 0,
        straggling: bool = False,
    ) -> None: ...


def calm(recorder: Recorder, hold: int = 10) -> None:
    recorder.add(1, 9.0, 5000.0)  # start-up
    recorder.add(4, 2.0, 1000.0)
    recorder.add(3, 2.02, 950.0, clock_mhz=1200, writes=2)
    recorder.add(hold, 2.01, 880.0, clock_mhz=1230, writes=4)


def reported(recorder: Recorder, straggler: Straggler | None = None) -> DemoReport:
    setting = Setting("small", "a100-sxm", 1, 4, 80.0, straggler)
    return report(setting, recorder.records, STATES, BOUNDS)


def test_means_by_state_leave_the_start_up_out(recorder: Recorder) -> None:
    """Iterations, mean time and mean energy of each state, by differences of the counters."""
    calm(recorder)
    phases = [(p.state, p.iterations) for p in reported(recorder).phases]
    assert phases == [("baseline", 4), ("learn", 3), ("hold", 10)]
    baseline, learn, hold = reported(recorder).phases
    assert (baseline.iteration_time_s, baseline.energy_j) == pytest.approx((2.0, 1000.0))
    assert (learn.iteration_time_s, learn.energy_j) == pytest.approx((2.02, 950.0))
    assert (hold.iteration_time_s, hold.energy_j) == pytest.approx((2.01, 880.0))


def test_saving_slowdown_and_learning(recorder: Recorder) -> None:
    """All against the baseline's means; learning counts every iteration before the first hold."""
    calm(recorder)
    found = reported(recorder)
    assert found.saving == pytest.approx(0.12)
    assert found.slowdown == pytest.approx(0.005)
    assert found.learning_iterations == 8
    assert found.learning_slowdown == pytest.approx(0.01)
    assert found.clock_writes_per_iteration == pytest.approx(4.0)
    assert (found.bound_saving, found.bound_saving_writes) == (0.16, 0.12)


def test_a_straggler_s_episode_is_reported_apart(recorder: Recorder) -> None:
    """Onset, reaction and recovery by the clocks; its energy against full clock, then waiting."""
    calm(recorder)  # 18 iterations
    recorder.add(2, 2.4, 900.0, clock_mhz=1230, straggling=True)  # not followed yet
    recorder.add(4, 2.4, 800.0, clock_mhz=1065, straggling=True)
    recorder.add(1, 2.3, 810.0, clock_mhz=1065)  # over, not followed yet
    recorder.add(5, 2.01, 880.0, clock_mhz=1230, writes=4)
    found = reported(recorder, Straggler(1.2, 18, 24))
    assert found.straggler is not None
    assert found.straggler.onset_iteration == 18
    assert found.straggler.reacted_after_iterations == 2
    assert found.straggler.recovered_after_iterations == 1
    full_j = 7 * 1000 + 80 * 6 * 0.4  # the iteration after the end is long by our own doing
    assert found.straggler.saving == pytest.approx(1 - (2 * 900 + 4 * 800 + 810) / full_j)
    assert found.saving == pytest.approx(0.12)
    assert found.slowdown == pytest.approx(0.005)
    assert [(p.state, p.iterations) for p in found.phases[2:]] == [
        ("hold", 10),
        ("hold", 7),
        ("hold", 5),
    ]


def test_an_announced_straggler_is_left_out(recorder: Recorder) -> None:
    """Somebody else's announcement: a row of its own, the means without it, no report on it."""
    calm(recorder)  # 18 iterations
    recorder.add(4, 2.5, 700.0, clock_mhz=1065)
    recorder.add(5, 2.01, 880.0, clock_mhz=1230, writes=4)
    found = report(SETTING, recorder.records, STATES, BOUNDS, announced=range(18, 22))
    phases = [(p.state, p.iterations, p.straggler) for p in found.phases[2:]]
    assert phases == [("hold", 10, False), ("hold", 4, True), ("hold", 5, False)]
    assert found.saving == pytest.approx(0.12)
    assert found.slowdown == pytest.approx(0.005)
    assert found.straggler is None


def test_a_straggler_that_nothing_follows(recorder: Recorder) -> None:
    """Clocks that stay as they are are no reaction, however long the straggler lasts."""
    calm(recorder)
    recorder.add(6, 2.4, 900.0, clock_mhz=1230, straggling=True)
    recorder.add(4, 2.01, 880.0, clock_mhz=1230)
    found = reported(recorder, Straggler(1.2, 18, 24))
    assert found.straggler is not None
    assert found.straggler.reacted_after_iterations is None
    assert found.straggler.recovered_after_iterations is None


def test_a_straggler_that_has_not_set_in(recorder: Recorder) -> None:
    """The run ended before: nothing is claimed about it, and everything else is as without."""
    calm(recorder)
    found = reported(recorder, Straggler(1.2, 40, 50))
    assert found.straggler is not None
    assert found.straggler.reacted_after_iterations is None
    assert found.straggler.recovered_after_iterations is None
    assert found.straggler.saving is None
    assert found.saving == pytest.approx(0.12)


def test_a_job_that_never_got_to_hold(recorder: Recorder) -> None:
    """What was not measured is null, never zero."""
    recorder.add(4, 2.0, 1000.0)
    found = report(SETTING, recorder.records, (("baseline", 0),), None)
    assert (found.saving, found.slowdown, found.learning_iterations) == (None, None, None)
    assert [p.state for p in found.phases] == ["baseline"]
    assert report(SETTING, [], (), None).phases == ()


def test_json_has_the_contract_s_keys(recorder: Recorder) -> None:
    """Exactly these, in one object that any JSON reader takes."""
    calm(recorder)
    found = json.loads(json.dumps(reported(recorder, Straggler(1.2, 40, 50)).to_json()))
    assert set(found) == {
        "schema_version",
        "emulated",
        "workload",
        "gpu",
        "stages",
        "microbatches",
        "phases",
        "saving",
        "slowdown",
        "bound_saving",
        "bound_saving_writes",
        "clock_writes_per_iteration",
        "learning_iterations",
        "learning_slowdown",
        "straggler",
        "profile",
        "bound_saving_as_run",
    }
    assert (found["schema_version"], found["emulated"]) == (1, True)
    phase = {"state", "iterations", "iteration_time_s", "energy_j", "straggler"}
    assert set(found["phases"][0]) == phase
    assert set(found["straggler"]) == {
        "onset_iteration",
        "reacted_after_iterations",
        "recovered_after_iterations",
        "saving",
    }
