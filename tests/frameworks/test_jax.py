"""The adapter of JAX on the real JAX, on CPU devices, in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RUNS = Path(__file__).parent / "jax_runs.py"
PATIENCE_S = 110.0
FORK = "ignore:os.fork:RuntimeWarning"  # JAX's own: forking after it has started threads


def run(*names: str, returncode: int = 0) -> dict[str, Any]:
    """The JSON object that it printed; every warning in it is an error."""
    environ = {"PATH": os.environ["PATH"], "PERSEUS_RUNTIME_DIR": "/nonexistent"}
    command = [sys.executable, "-W", "error", "-W", FORK, str(RUNS), *names]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == returncode, done.stderr
    assert "Traceback" not in done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def dispatched() -> dict[str, Any]:
    return run("whole", "tasks", "rough")


@pytest.fixture(scope="module")
def marked() -> dict[str, Any]:
    return run("marks")["marks"]  # type: ignore[no-any-return]


def test_whole_iterations_last_until_their_results_are_ready(dispatched: dict[str, Any]) -> None:
    """Dispatched all at once, they follow each other, none ends before it is ready, all counted."""
    found = dispatched["whole"]
    spans = found["spans"]
    assert found["settled"]
    assert [(what, iteration) for what, _, iteration, _, _ in spans] == [
        ("iteration", 0),
        ("iteration", 1),
        ("iteration", 2),
    ]
    (_, _, _, start_ns, _), *later = spans
    assert found["before_ns"] <= start_ns <= found["dispatched_ns"][0]
    for span, before in zip(later, spans, strict=False):
        assert span[3] >= before[4]
    for span, unready_ns, told_ns in zip(
        spans, found["unready_ns"], found["dispatched_ns"], strict=True
    ):
        assert span[4] > unready_ns
        assert unready_ns == 0 or unready_ns > told_ns  # training did not wait for it
    assert any(found["unready_ns"])


def test_whole_iterations_change_nothing_and_say_whose_times_they_are(
    dispatched: dict[str, Any],
) -> None:
    """Losses are the same to the last bit, and the hello says `ready`."""
    assert dispatched["whole"]["losses"] == dispatched["whole"]["hooked"]
    assert dispatched["whole"]["time_source"] == "ready"


def test_tasks_of_four_stages_are_told_in_the_order_of_their_schedule(
    dispatched: dict[str, Any],
) -> None:
    """1F1B of four devices in one process: each rank's order, for each iteration, no overlap."""
    found = dispatched["tasks"]
    assert found["settled"]
    for spans, schedule in zip(found["ranks"], found["schedules"], strict=True):
        expected = [[*step, number] for number in range(3) for step in schedule]
        assert [span[:3] for span in spans] == expected
        stamps = [stamp for span in spans for stamp in span[3:]]
        assert stamps == sorted(stamps)
    assert found["equal"]  # the gradients, with and without hooks


def test_waiting_for_another_device_is_no_part_of_a_task(dispatched: dict[str, Any]) -> None:
    """Dispatched long before its input is there, a task begins when that has come."""
    [[_, _, _, start_ns, _]] = dispatched["rough"]["after an input"]
    assert start_ns > dispatched["rough"]["input unready"] > 0


def test_a_donated_state_with_a_loss_is_timed_by_the_loss(dispatched: dict[str, Any]) -> None:
    """The usual training loop: what is donated is passed over."""
    spans = dispatched["rough"]["with loss"]
    assert [span[0] for span in spans] == ["forward"] * 3


def test_where_all_is_donated_nothing_is_made_up(dispatched: dict[str, Any]) -> None:
    """What was deleted before it was ready is `other`, and said once; later tasks are known."""
    found = dispatched["rough"]
    assert [span[0] for span in found["all donated"]][:2] == ["other", "other"]
    assert [span[0] for span in found["afterwards"]][-1] == "backward"
    assert sum("was donated or deleted" in line for line in found["log"]) == 1


def test_what_goes_wrong_around_a_task_is_the_users_own(dispatched: dict[str, Any]) -> None:
    """An exception passes, a task inside jit computes as without it, any result comes back."""
    found = dispatched["rough"]
    assert found["raised"] == "TypeError"
    assert found["inside"] == 2.0
    assert found["same object"]
    assert found["odd"] == ["iteration"] * 3
    assert len(found["log"]) == 3


def test_marks_tell_the_executed_order_of_every_rank(marked: dict[str, Any]) -> None:
    """A pipeline that is one jitted function: GPipe forward, and backward in reverse, each time."""
    microbatches = range(6)
    schedule = [["forward", m] for m in microbatches]
    schedule += [["backward", m] for m in reversed(microbatches)]
    assert len(marked["ranks"]) == 4
    for spans in marked["ranks"]:
        assert [span[:2] for span in spans] == schedule * 3
        stamps = [stamp for span in spans for stamp in span[3:]]
        assert stamps == sorted(stamps)
    assert marked["open"] == [0, 0, 0, 0]


def test_marks_change_no_bit(marked: dict[str, Any]) -> None:
    """Losses of three training iterations and the weights after them."""
    assert marked["losses"]["marked"] == marked["losses"]["plain"]
    assert len(set(marked["losses"]["plain"])) == 4


def test_the_interpreter_ends_and_a_forked_child_is_silent() -> None:
    """With work pending: our thread is gone before JAX is taken down, and a child never had one."""
    found = run("leave", returncode=3)
    assert found["pending"]
    assert "perseus-ready" in found["before"]
    assert "perseus-ready" not in found["left"]
