"""Every schedule that torch ships, run for real by two processes on the CPU.

The ranks of `pipeline_ranks.py` run each schedule without the hooks and with them; what they tell
is looked at here.
"""

from __future__ import annotations

from typing import Any

import pytest
from perseus_hooks.adapters import torch_pipelining
from perseus_hooks.testing import record

from perseusd.core.model import Computation
from perseusd.core.schedules import by_name, pipeline
from tests.frameworks.processes import run_ranks

MICROBATCHES = 4
NAMED = {"1F1B": "1f1b", "GPipe": "gpipe"}
SCHEDULES = (
    "1F1B",
    "GPipe",
    "Interleaved1F1B",
    "LoopedBFS",
    "InterleavedZeroBubble",
    "ZBVZeroBubble",
    "DualPipeV",
)
Told = dict[str, Any]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Told]]:
    """What each rank told, by schedule."""
    return run_ranks("pipeline_ranks.py", tmp_path_factory.mktemp("ranks"))


def training(told: Told) -> list[list[Any]]:
    return [span for span in told["spans"] if span[0] != "other"]


def expected(name: str, rank: int, told: Told) -> list[list[Any]]:
    """One iteration: torch's own program where it has one, else the schedule by its rule."""
    if told["executed"] is not None:
        program: list[list[Any]] = told["executed"]
        return program
    order = by_name(NAMED[name], 2, MICROBATCHES)[rank]
    return [[c.instruction, c.microbatch, c.chunk] for c in order]


@pytest.mark.parametrize("name", SCHEDULES)
def test_what_is_told_is_what_was_executed(ranks: list[dict[str, Told]], name: str) -> None:
    """Order, microbatch, chunk and iteration of every computation of every rank and iteration."""
    for rank, told in enumerate(ranks):
        order = expected(name, rank, told[name])
        assert len(order) >= 2 * MICROBATCHES
        wanted = [[*one, iteration] for iteration in range(3) for one in order]
        assert training(told[name]) == wanted
        assert told[name]["open"] == 0


@pytest.mark.parametrize("name", SCHEDULES)
def test_training_comes_out_the_same_bit_by_bit(ranks: list[dict[str, Told]], name: str) -> None:
    """Every loss and every parameter after three iterations."""
    for told in ranks:
        assert told[name]["values"] > 0
        assert told[name]["same"]


@pytest.mark.parametrize("name", SCHEDULES)
def test_evaluation_is_no_training(ranks: list[dict[str, Told]], name: str) -> None:
    """It is `other`, one a forward; V-shaped schedules cannot evaluate in torch."""
    for told in ranks:
        others = [span for span in told[name]["spans"] if span[0] == "other"]
        chunks = 1 + max(span[2] for span in training(told[name]))
        evaluates = name not in ("ZBVZeroBubble", "DualPipeV")
        assert len(others) == (MICROBATCHES * chunks if evaluates else 0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_daemon_can_plan_what_is_told(ranks: list[dict[str, Told]], name: str) -> None:
    """The orders of both ranks, and the schedule's declared name, make a pipeline that can run."""
    orders = [
        tuple(
            Computation(rank, chunk, instruction, microbatch)
            for instruction, microbatch, chunk, iteration in training(told[name])
            if iteration == 0
        )
        for rank, told in enumerate(ranks)
    ]
    built = pipeline(orders, schedule=ranks[0][name]["place"][-1])
    assert built.ranks == 2
    assert built.edges


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_place_in_the_pipeline_is_known_to_the_schedule(
    ranks: list[dict[str, Told]], name: str
) -> None:
    """Stage, stages, the only replica and the schedule's name: `configure` need not say them."""
    for rank, told in enumerate(ranks):
        assert told[name]["place"] == [rank, 2, 0, 1, f"Schedule{name}"]


@pytest.mark.parametrize("name", SCHEDULES)
def test_what_was_instrumented_can_be_let_go(ranks: list[dict[str, Told]], name: str) -> None:
    """Nothing of ours stays on torch's objects."""
    for told in ranks:
        assert told[name]["left_behind"] == []


def test_what_is_no_schedule_is_refused() -> None:
    """With the fix in the message."""
    with pytest.raises(TypeError, match="pass the object whose step"):
        torch_pipelining.instrument(object())


def test_without_a_process_group_training_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    """Where this rank stands cannot be told, and the log says so: no reason to raise."""

    class Stage:
        stage_index, group_size, is_last = 0, 1, False

        def forward_one_chunk(self, number: int) -> int:
            return number

        backward_one_chunk = backward_weight_one_chunk = forward_one_chunk

    class Schedule:
        _stage, _has_backward, _loss_fn = Stage(), True, None

        def step(self) -> int:
            return self._stage.forward_one_chunk(3)

    schedule = Schedule()
    with record() as recording, torch_pipelining.instrument(schedule):
        assert schedule.step() == 3
    assert [(span.instruction, span.microbatch) for span in recording.spans] == [("forward", 3)]
    assert "does not hear which stage" in caplog.text
