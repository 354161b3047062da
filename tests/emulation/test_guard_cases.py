"""A sample of benchmarks/guard.py's disturbances, and of benchmarks/reaction.py's onsets."""

from __future__ import annotations

import pytest

from perseusd.emulation.guard_cases import AT, CASES, MOST_IN_A_ROW, Case, disturbed, longest_run
from perseusd.emulation.onsets import onsets
from perseusd.emulation.workloads import load_workload

SAMPLE = ("a lowered rank turns slow", "GPU stuck low", "false announcement")


def case(name: str) -> Case:
    return next(each for each in CASES if each.name == name)


@pytest.mark.parametrize("name", SAMPLE)
def test_never_more_than_three_slow_iterations_in_a_row_because_of_us(name: str) -> None:
    """Against the truth of the same iterations at full clock; and the job is held at the end."""
    workload = load_workload("bert-1.3b", "a100-pcie")
    outcome, run = disturbed(case(name), workload, 0.01, 0, microbatches=6, iterations=AT + 20)
    assert longest_run(run.done) == outcome.longest <= MOST_IN_A_ROW
    assert outcome.held_after is not None, run.notices
    assert any(i.state == "hold" for i in run.done[:AT])


def test_names_of_cases_are_told_apart() -> None:
    """Twenty disturbances at least, each once."""
    names = [each.name for each in CASES]
    assert len(set(names)) == len(names) >= 20


def test_stragglers_are_told_planned_for_and_let_go_of() -> None:
    """Told within three iterations, and its plan in force within two more; at its end only the
    iteration in which it ends is late."""
    workload = load_workload("bert-1.3b", "a100-pcie")
    for onset in onsets(workload, replicas=2, count=1, seed=4, noise=0.01):
        assert onset.detected is not None, onset
        assert onset.detected <= 3 + onset.slow.ramp
        assert onset.written is not None, onset
        assert onset.written <= 2
        assert onset.late <= 1
