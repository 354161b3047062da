"""DeepSpeed's own pipeline engines on two CPUs: what the adapter says is what the engine executed.

Expected orders: the instructions of the engine's own schedule, what the model noted while it
computed, and the schedule that perseusd plans by.
"""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from perseus_hooks.adapters.deepspeed import instrument

from perseusd.core.model import Computation
from perseusd.core.schedules.dependencies import pipeline
from perseusd.core.schedules.registry import by_name
from tests.frameworks.processes import run_ranks

MICROBATCHES = 5
SCHEDULES = ["1f1b", "dualpipev"]

Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What the two ranks of deepspeed_worker.py saw."""
    return run_ranks(
        "deepspeed_worker.py", tmp_path_factory.mktemp("deepspeed"), DS_ACCELERATOR="cpu"
    )


def iteration(spans: list[list[Any]], number: int) -> list[list[Any]]:
    """Instruction, microbatch and chunk of one iteration's spans, in order."""
    return [span[:3] for span in spans if span[-1] == number]


def order(seen: dict[str, Any], rank: int) -> tuple[Computation, ...]:
    spans = iteration(seen["spans"], 0)
    return tuple(Computation(rank, chunk, what, microbatch) for what, microbatch, chunk in spans)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_spans_are_the_schedules_instructions(found: Found, schedule: str, rank: int) -> None:
    """In every iteration; DualPipeV's buffers are numbered by phase and microbatch."""
    seen = found[rank][schedule]
    assert [span[-1] for span in seen["spans"] if span[-1] is not None][-1] == 2
    for number in range(3):
        spans = iteration(seen["spans"], number)
        assert [[what, chunk] for what, _, chunk in spans] == [
            [what, phase] for what, _, phase in seen["scheduled"]
        ]
        if schedule == "dualpipev":
            assert [chunk * MICROBATCHES + microbatch for _, microbatch, chunk in spans] == [
                buffer for _, buffer, _ in seen["scheduled"]
            ]
    assert seen["open"] == 0


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_model_computed_in_that_order(found: Found, schedule: str, rank: int) -> None:
    """What the engine's layers noted, without the evaluation's forwards after two iterations."""
    seen = found[rank][schedule]
    told = [span[0] for span in seen["spans"] if span[0] != "other"]
    trained = len(seen["scheduled"])
    evaluated = len(seen["ran"]) - len(told)
    assert evaluated == MICROBATCHES * (2 if schedule == "dualpipev" else 1)
    assert seen["ran"][2 * trained : 2 * trained + evaluated] == ["forward"] * evaluated
    assert seen["ran"][: 2 * trained] + seen["ran"][2 * trained + evaluated :] == told


@pytest.mark.parametrize("rank", [0, 1])
def test_the_order_is_the_1f1b_that_perseusd_plans_by(found: Found, rank: int) -> None:
    """Microbatches included: a buffer keeps its own until the backward, then serves another."""
    assert order(found[rank]["1f1b"], rank) == by_name("1f1b", 2, MICROBATCHES)[rank]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_perseusd_understands_the_ranks_together(found: Found, schedule: str) -> None:
    """The orders of both ranks can run as one pipeline, in the layout that the name suggests."""
    orders = [order(own[schedule], rank) for rank, own in enumerate(found)]
    assert pipeline(orders, schedule=schedule).edges


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_evaluation_is_other_and_no_iteration(found: Found, schedule: str) -> None:
    """It ran between the second and the third iteration, as one span that is no training."""
    for seen in (own[schedule] for own in found):
        others = [i for i, span in enumerate(seen["spans"]) if span[0] == "other"]
        assert len(others) == 1
        assert seen["spans"][others[0] - 1][-1] == 1
        assert seen["spans"][others[0] + 1][-1] == 2


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_training_is_bit_identical(found: Found, schedule: str) -> None:
    """Losses, parameters and random state after training with dropout, with and without."""
    for own in found:
        assert own[schedule]["alike"]
        assert own[schedule]["values"] > 4  # the losses, and more


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_removal_restores_the_engine(found: Found, schedule: str) -> None:
    """It has nothing of ours left, and another iteration is not reported."""
    for own in found:
        assert own[schedule]["restored"]
        assert own[schedule]["spans_after_removal"] == 0


def test_deepspeed_says_where_each_rank_is(found: Found) -> None:
    """Stage, replica and the name of the schedule, by the engine and its grid."""
    for rank, own in enumerate(found):
        place = {"rank": rank, "world_size": 2, "stage": rank, "stages": 2}
        for schedule in SCHEDULES:
            told = {**place, "replica": 0, "replicas": 1, "schedule": schedule}
            assert own[schedule]["place"] == told


def test_an_exception_of_the_model_passes(found: Found) -> None:
    """Its computation has ended all the same."""
    seen = found[0]["failing"]
    assert seen["raised"] == "of the model"
    assert seen["spans"][-1] == ["forward", 0, 0, 1]
    assert seen["open"] == 0


def test_a_place_that_deepspeed_does_not_tell_costs_no_spans(found: Found) -> None:
    """That is logged once, and the iteration is reported."""
    for own in found:
        assert iteration(own["failing"]["spans"], 0) == iteration(own["1f1b"]["spans"], 0)
        assert len(own["failing"]["log"]) == 1
        assert "which stage this process is" in own["failing"]["log"][0]


def test_nothing_is_logged_where_all_is_well(found: Found) -> None:
    """In training with either schedule."""
    assert [own["log"] for own in found] == [[], []]


def test_an_engine_without_pipeline_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Logged, not raised."""
    engine = SimpleNamespace(train_batch=len)
    with caplog.at_level(logging.WARNING, "perseus_hooks"):
        instrument(engine).remove()
    assert vars(engine) == {"train_batch": len}
    assert "instrument a PipelineEngine" in caplog.text
