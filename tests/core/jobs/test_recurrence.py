"""What keeps an order from being understood is named once it is more than a beginning."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from perseus_hooks.events import StageEnd, StageStart

from perseusd.core.events.tracking import RankTrack, Step
from perseusd.core.jobs import recurrence
from perseusd.core.jobs.recurrence import PATIENCE, Recurrence
from perseusd.core.jobs.why import WhyCode, code_of

FORWARD, BACKWARD = Step(0, "forward", 0), Step(0, "backward", 0)


class Rank:
    """A rank whose events its track and its recurrence hear, as a job has them."""

    def __init__(self) -> None:
        self.track, self.recurrence = RankTrack(), Recurrence()
        self.sequence = self.now_ns = 0

    def start(self, step: Step, iteration: int | None = None) -> None:
        self.sequence += 1
        self.now_ns += 10
        event = StageStart(
            self.sequence, self.now_ns, self.sequence, step.instruction, step.microbatch,
            step.chunk, None, iteration,
        )  # fmt: skip
        self.recurrence.heard(event, self.track.start(event), lost=False)

    def end(self, token: int | None = None, *, lost: bool = False) -> None:
        token = self.sequence if token is None else token
        self.sequence += 1
        self.now_ns += 10
        event = StageEnd(self.sequence, self.now_ns, token)
        progress = self.track.lost_events() if lost else []
        self.recurrence.heard(event, progress + self.track.end(event), lost=lost)

    def iterate(self, steps: Sequence[Step], iteration: int | None = None) -> None:
        for step in steps:
            self.start(step, iteration)
            self.end()

    @property
    def trouble(self) -> str:
        return self.recurrence.trouble or ""


def test_the_first_difference_of_the_last_two_iterations_is_named() -> None:
    """Whatever their lengths, and only after so many that differ."""
    rank = Rank()
    longer = (FORWARD, BACKWARD, Step(1, "forward", 3))
    for number in range(PATIENCE + 1):
        rank.iterate(longer[: 2 + number % 2], number)
        assert not rank.trouble
    rank.start(FORWARD, PATIENCE + 1)
    assert rank.trouble == (
        "its order does not recur: iteration 10 had its end at position 2 (from 0), where "
        "iteration 9 had forward of microbatch 3 of chunk 1"
    )
    assert code_of(rank.trouble) is WhyCode.ORDER


def test_equal_iterations_between_begin_the_count_anew() -> None:
    """A warm-up's or an evaluation's iterations are no trouble."""
    rank = Rank()
    for number in range(3 * PATIENCE):
        rank.iterate((FORWARD, BACKWARD, FORWARD)[: 3 - (number // 2) % 2], number)
    assert not rank.trouble


def test_iterations_that_do_not_count_by_one() -> None:
    """None is ever whole; what came after what is told."""
    rank = Rank()
    for number in range(PATIENCE + 1):
        assert not rank.trouble
        rank.iterate((FORWARD, BACKWARD), 4 * number)
    assert "iteration 40 came after 36: iterations must count by one" in rank.trouble
    assert code_of(rank.trouble) is WhyCode.ORDER


def test_computations_that_overlap() -> None:
    """Such as those of a loop that calls stage_end after some of them only."""
    rank = Rank()
    for number in range(PATIENCE):
        assert not rank.trouble
        rank.start(FORWARD, number)
        rank.iterate((BACKWARD,), number)
    assert "backward of microbatch 0 started before forward of microbatch 0 had" in rank.trouble
    assert code_of(rank.trouble) is WhyCode.ORDER


def test_a_computation_whose_end_was_lost_overlaps_with_none() -> None:
    """What is told is that events were lost."""
    rank = Rank()
    for _ in range(PATIENCE):
        rank.start(FORWARD)
        rank.sequence += 1
        rank.end(lost=True)
    assert "events of this rank were lost" in rank.trouble


def test_stamps_that_go_back() -> None:
    """In every iteration, as where a job's processes take turns on one connection."""
    rank = Rank()
    for number in range(PATIENCE):
        assert not rank.trouble
        rank.iterate((FORWARD, BACKWARD), number)
        rank.now_ns -= 2_000_000_000
    rank.start(FORWARD, PATIENCE)
    assert "its stamps went back by 2 s" in rank.trouble
    assert code_of(rank.trouble) is WhyCode.ORDER


def test_microbatches_that_count_on_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """No computation comes twice: told when no iteration could be so long."""
    monkeypatch.setattr(recurrence, "ENDLESS", 50)
    rank = Rank()
    for microbatch in range(26):
        assert not rank.trouble
        rank.iterate((Step(0, "forward", microbatch), Step(0, "backward", microbatch)))
    assert "no iteration ended in 50 computations" in rank.trouble
    assert "iteration=" in rank.trouble
    assert code_of(rank.trouble) is WhyCode.ORDER


def test_other_work_is_no_computation() -> None:
    """It may begin while another is open, and as often as it likes."""
    rank = Rank()
    for _ in range(2 * PATIENCE):
        rank.start(FORWARD)
        forward = rank.sequence
        rank.start(Step(0, "other", 0))
        rank.end()
        rank.end(forward)
    assert not rank.trouble
