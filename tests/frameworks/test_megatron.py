"""Megatron-Core's own schedules on two CPUs: the adapter says what ran, and changes nothing.

Expected orders: what the model noted while it computed, and the schedules that perseusd plans by.
"""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from perseus_hooks.adapters import megatron

from perseusd.core.model import Computation
from perseusd.core.schedules.registry import by_name
from tests.frameworks.processes import run_ranks

Found = list[dict[str, Any]]
ORDERS = {"1f1b": by_name("1f1b", 2, 5), "interleaved": by_name("interleaved-1f1b", 2, 4, 2)}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What the two ranks of megatron_worker.py saw."""
    return run_ranks("megatron_worker.py", tmp_path_factory.mktemp("megatron"))


def iteration(spans: list[list[Any]], number: int) -> list[list[Any]]:
    """Instruction, microbatch and chunk of one iteration's spans, in order."""
    return [span[:3] for span in spans if span[-1] == number]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "alone"])
def test_the_spans_are_what_the_model_computed(found: Found, schedule: str, rank: int) -> None:
    """Instruction, microbatch and chunk, in order, of every iteration; none is left open."""
    seen = found[rank][schedule]
    trained = [truth for kind, truth in seen["ran"] if kind == "train"]
    assert len(trained) == 3
    for number, truth in enumerate(trained):
        assert iteration(seen["spans"], number) == truth
    assert seen["open"] == 0


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("schedule", ["1f1b", "interleaved"])
def test_the_order_is_the_one_that_perseusd_plans_by(
    found: Found, schedule: str, rank: int
) -> None:
    """So a plan for a Megatron job, made offline or learned, is for what Megatron runs."""
    spans = iteration(found[rank][schedule]["spans"], 0)
    order = tuple(Computation(rank, chunk, what, microbatch) for what, microbatch, chunk in spans)
    assert order == ORDERS[schedule][rank]


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "alone"])
def test_evaluation_is_other_and_no_iteration(found: Found, schedule: str) -> None:
    """It computed forwards, between the second and the third iteration; none was reported."""
    for seen in (own[schedule] for own in found):
        kinds = [kind for kind, _ in seen["ran"]]
        assert kinds == ["train", "train", "evaluate", "train"]
        assert all(what == "forward" for what, _, _ in seen["ran"][2][1])
        others = [i for i, span in enumerate(seen["spans"]) if span[0] == "other"]
        assert len(others) == 1
        assert seen["spans"][others[0] - 1][-1] == 1
        assert seen["spans"][others[0] + 1][-1] == 2


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "alone"])
def test_training_is_bit_identical(found: Found, schedule: str) -> None:
    """Losses, parameters and random state after training with dropout, with and without."""
    assert all(own[schedule]["alike"] for own in found)
    assert found[1][schedule]["losses"] > 0


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "alone"])
def test_removal_restores_megatron(found: Found, schedule: str) -> None:
    """The module has its own functions again, and another iteration is not reported."""
    for own in found:
        assert own[schedule]["restored"]
        assert own[schedule]["spans_after_removal"] == 0


def test_megatron_says_where_each_rank_is(found: Found) -> None:
    """Stage by pipeline rank, replica by data-parallel rank, and the schedule by its name."""
    for rank, own in enumerate(found):
        known = {"rank": rank, "world_size": 2}
        piped = {**known, "stage": rank, "stages": 2, "replica": 0, "replicas": 1}
        assert own["1f1b"]["place"] == {**piped, "schedule": "1f1b"}
        assert own["interleaved"]["place"] == {**piped, "schedule": "interleaved-1f1b"}
        copies = {**known, "stage": 0, "stages": 1, "replica": rank, "replicas": 2}
        assert own["data"] == {**copies, "schedule": None}


@pytest.mark.parametrize("peers", ["tensor", "context"])
def test_ranks_that_share_a_microbatch_share_a_stage(found: Found, peers: str) -> None:
    """Tensor- and context-parallel peers are one stage of one replica, which has one clock."""
    assert [own[peers]["rank"] for own in found] == [0, 1]
    for own in found:
        assert (own[peers]["stage"], own[peers]["stages"]) == (0, 1)
        assert (own[peers]["replica"], own[peers]["replicas"]) == (0, 1)


def test_an_exception_of_the_model_passes(found: Found) -> None:
    """Its computation has ended all the same, and the next iteration is whole."""
    for own in found:
        seen = own["failing"]
        assert seen["raised"] == "of the model"
        assert iteration(seen["spans"], 0)[-1] == ["forward", 1, 0]
        assert iteration(seen["spans"], 1) == own["alone"]["ran"][0][1]
        assert seen["open"] == 0


def test_nothing_is_logged_where_all_is_well(found: Found) -> None:
    """Neither in training nor when the model raises."""
    assert [own["log"] for own in found] == [[], []]


def test_a_place_that_megatron_does_not_tell_costs_no_spans(found: Found) -> None:
    """That is logged once, and both iterations are reported."""
    for own in found:
        assert own["nowhere"]["spans"] == 20
        assert own["nowhere"]["stage"] is None
        assert len(own["nowhere"]["log"]) == 1
        assert "of Megatron" in own["nowhere"]["log"][0]


def test_a_schedule_fetched_too_early_is_named_once(found: Found) -> None:
    """Training goes on unreported, since iterations could not be told apart."""
    for own in found:
        assert own["late"]["spans"] == 0
        assert own["late"]["losses"] == 10
        assert len(own["late"]["log"]) == 1
        assert "before get_forward_backward_func()" in own["late"]["log"][0]


def test_another_module_than_expected_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """A Megatron without these functions: logged, not raised, and what was replaced is back."""
    module = SimpleNamespace(forward_step=len)
    with caplog.at_level(logging.WARNING, "perseus_hooks"):
        megatron.instrument(module).remove()
    assert vars(module) == {"forward_step": len}
    assert "backward_step" in caplog.text


def test_a_schedule_that_computes_otherwise_is_named_once(found: Found) -> None:
    """As overlap_moe_expert_parallel_comm lets it: it runs unreported, and returns what it does."""
    for own in found:
        assert own["otherwise"]["returned"] == ["losses", "losses"]
        assert own["otherwise"]["spans"] == 0
        assert len(own["otherwise"]["log"]) == 1
        assert "overlap_moe" in own["otherwise"]["log"][0]
