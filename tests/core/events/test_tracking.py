"""Ranks' streams of events become iterations of a known order, or a Disorder; never an error."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from perseus_hooks.events import StageEnd, StageStart

from perseusd.core.events import tracking
from perseusd.core.events.tracking import (
    Completed,
    Disorder,
    Ended,
    Progress,
    RankTrack,
    Started,
    Step,
    aligned_numbers,
)

ORDER = (
    Step(0, "forward", 0),
    Step(0, "forward", 1),
    Step(0, "backward", 0),
    Step(0, "backward", 1),
)


class Feed:
    """Says computations to a track, each 10 ns long with 1 ns between."""

    def __init__(self, first_sequence: int = 1) -> None:
        self.track = RankTrack()
        self.now = 1000
        self.sequence = first_sequence - 1
        self.progress: list[Progress] = []

    def start(self, step: Step, iteration: int | None, token: int = 1) -> None:
        self.sequence += 1
        event = StageStart(
            self.sequence, self.now, token, step.instruction, step.microbatch, step.chunk, None,
            iteration,
        )  # fmt: skip
        self.progress += self.track.start(event)

    def end(self, token: int = 1) -> None:
        self.sequence += 1
        self.now += 10
        self.progress += self.track.end(StageEnd(self.sequence, self.now, token))
        self.now += 1

    def say(self, steps: Sequence[Step], iteration: int | None = None) -> None:
        for step in steps:
            self.start(step, iteration)
            self.end()

    def of(self, kind: type) -> list[Progress]:
        return [p for p in self.progress if isinstance(p, kind)]


steps = st.builds(
    Step,
    st.integers(0, 2),
    st.sampled_from(("forward", "backward", "iteration", "other", "recompute")),
    st.integers(0, 2),
)
numbers = st.none() | st.integers(0, 4) | st.just(2**63 - 1)
stamps = st.integers(0, 50) | st.just(2**63 - 1)
tokens = st.integers(0, 2)
events = st.one_of(
    st.tuples(st.just("start"), stamps, tokens, steps, numbers),
    st.tuples(st.just("end"), stamps, tokens),
    st.tuples(st.just("lost")),
    st.tuples(st.just("restart")),
)


@given(st.lists(events, max_size=60))
def test_no_stream_makes_it_raise(stream: list[tuple]) -> None:  # type: ignore[type-arg]
    """Any order of well-formed messages, stamps and numbers: progress, never an exception; what
    is reported as whole follows one order, in stamps that never go backwards."""
    track = RankTrack()
    for sequence, (kind, *rest) in enumerate(stream):
        progress: list[Progress] = []
        if kind == "start":
            at, token, step, number = rest
            event = StageStart(
                sequence, at, token, step.instruction, step.microbatch, step.chunk, None, number
            )
            progress = track.start(event)
        elif kind == "end":
            progress = track.end(StageEnd(sequence, *rest))
        elif kind == "lost":
            progress = track.lost_events()
        else:
            track.restart()
        for step in progress:
            if isinstance(step, Completed):
                stamped = [
                    ns for span in step.iteration.spans for ns in (span.start_ns, span.end_ns)
                ]
                assert stamped == sorted(stamped)
                assert stamped
            if isinstance(step, Started | Ended):
                assert track.order is not None
                assert step.position < len(track.order)


orders = st.lists(
    st.builds(Step, st.integers(0, 1), st.sampled_from(("forward", "backward")), st.integers(1, 9)),
    max_size=12,
    unique=True,
).map(lambda rest: (Step(0, "forward", 0), *rest))


@given(orders, st.booleans(), st.integers(0, 11))
def test_an_order_that_recurs_is_understood(
    order: tuple[Step, ...], said: bool, joined_at: int
) -> None:
    """Wherever the stream is joined and whether or not numbers are told, three whole iterations
    are enough, and from then on each iteration is whole at its last end."""
    feed = Feed(first_sequence=100)
    feed.say(order[min(joined_at, len(order) - 1) + 1 :], 6 if said else None)
    for i in range(7, 11):
        feed.say(order, i if said else None)
    assert feed.track.order == order
    assert not feed.of(Disorder)
    last = feed.progress[-1]
    assert isinstance(last, Completed)
    assert last.iteration.order == order
    if said:
        assert last.iteration.number == 10


def test_iterations_are_counted_where_the_trainer_does_not() -> None:
    """Unsaid numbers: the first computation's recurrence ends an iteration; the count goes up."""
    feed = Feed()
    for _ in range(5):
        feed.say(ORDER)
    assert [p.iteration.number for p in feed.of(Completed)] == [0, 1, 2, 3, 4]  # type: ignore[union-attr]
    assert feed.track.counted


@given(st.integers(0, 3), st.booleans())
def test_a_surprise_is_a_disorder_and_is_recovered_from(position: int, said: bool) -> None:
    """A computation out of order is told at once, in words; three iterations later the order is
    understood again."""
    feed = Feed()
    for i in range(3):
        feed.say(ORDER, i if said else None)
    feed.say(ORDER[:position], 3 if said else None)
    assert not feed.of(Disorder)
    feed.start(Step(1, "recompute", 5), 3 if said else None)
    (told,) = feed.of(Disorder)
    assert "recompute 5" in told.why  # type: ignore[union-attr]
    assert feed.track.order is None
    feed.end()
    for i in range(4, 8):
        feed.say(ORDER, i if said else None)
    assert feed.track.order == ORDER
    assert len(feed.of(Disorder)) == 1


def _understood() -> Feed:
    feed = Feed()
    for i in range(3):
        feed.say(ORDER, i)
    assert feed.track.order == ORDER
    return feed


def test_an_iteration_cut_short_is_a_disorder() -> None:
    """A new number before the order is through means that something was not seen."""
    feed = _understood()
    feed.say(ORDER[:2], 3)
    feed.start(ORDER[0], 4)
    (told,) = feed.of(Disorder)
    assert "ended after 2 of 4" in told.why  # type: ignore[union-attr]


@pytest.mark.parametrize("number", [4, 10**15])
def test_numbers_must_count_by_one(number: int) -> None:
    """A jump forward is a Disorder: plans are adopted by number, and one adopted for a
    number that comes a thousand iterations later, or never, would be held meanwhile."""
    feed = _understood()
    feed.say(ORDER[:1], number)
    (told,) = feed.of(Disorder)
    assert f"iteration {number} came after 2" in told.why  # type: ignore[union-attr]
    for i in range(number + 1, number + 5):
        feed.say(ORDER, i)
    assert feed.track.order == ORDER


def test_a_number_said_again_is_a_disorder() -> None:
    """The iteration goes on after its last computation: it is not what was understood."""
    feed = _understood()
    feed.say(ORDER[:1], 2)
    (told,) = feed.of(Disorder)
    assert "where the iteration's end was expected" in told.why  # type: ignore[union-attr]


@pytest.mark.parametrize("number", [0, 1])
def test_a_new_epoch_goes_on_where_the_last_one_ended(number: int) -> None:
    """Numbers that start again after a whole iteration: no Disorder, and the daemon counts on, also
    over a third epoch."""
    feed = _understood()
    for epoch in range(2):
        for i in range(3):
            feed.say(ORDER, number + i)
            assert feed.track.number == 3 + 3 * epoch + i
    assert not feed.of(Disorder)
    assert feed.track.order == ORDER


def test_numbers_that_go_back_in_the_middle_of_an_iteration_are_a_disorder() -> None:
    """An epoch ends with a whole iteration; and the numbers after it are the trainer's again."""
    feed = _understood()
    feed.say(ORDER[:2], 3)
    feed.say(ORDER[:1], 0)
    (told,) = feed.of(Disorder)
    assert "iteration 0 came after 3" in told.why  # type: ignore[union-attr]
    assert feed.track.number == 0


def test_an_order_that_was_understood_counts_as_soon_as_it_is_repeated_once() -> None:
    """After something else came between, one whole iteration is enough, and of another order two
    are needed as ever."""
    feed = _understood()
    feed.say([*ORDER, ORDER[0]], 3)
    assert feed.of(Disorder)
    feed.say(ORDER, 4)
    assert feed.track.order is None
    feed.start(ORDER[0], 5)
    assert feed.track.order == ORDER
    feed.end()
    feed.say(ORDER[1:], 5)
    other = ORDER[::-1]
    for i in range(6, 9):
        feed.say(other, i)
        assert feed.track.order is None
    feed.start(other[0], 9)
    assert feed.track.order == tuple(other)


def test_stamps_that_go_back_are_a_disorder() -> None:
    """Durations and boundaries are computed from stamps, so one that lies is not used; the next
    stamps count from where it left."""
    feed = _understood()
    feed.now -= 500
    feed.start(ORDER[0], 3)
    (told,) = feed.of(Disorder)
    assert "went back by" in told.why  # type: ignore[union-attr]
    feed.end()
    for i in range(4, 8):
        feed.say(ORDER, i)
    assert feed.track.order == ORDER


def test_lost_events_are_a_disorder_only_once_understood() -> None:
    """Before the order is known nothing has to be taken back."""
    assert RankTrack().lost_events() == []
    assert [type(p) for p in _understood().track.lost_events()] == [Disorder]


def test_overlapping_computations_are_a_disorder() -> None:
    """One rank computes one thing at a time; else its durations mean nothing."""
    feed = _understood()
    feed.start(ORDER[0], 3)
    feed.start(ORDER[1], 3)
    (told,) = feed.of(Disorder)
    assert "before forward of microbatch 0 had ended" in told.why  # type: ignore[union-attr]


def test_what_is_outside_the_order_is_ignored() -> None:
    """`other` spans and ends of tokens never started change nothing."""
    feed = _understood()
    feed.start(Step(0, "other", 0), 3)
    feed.end(token=99)
    feed.say(ORDER, 3)
    assert not feed.of(Disorder)
    assert len(feed.of(Completed)) == 4


def test_a_stream_that_never_recurs_fills_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Computations kept are bounded, and a first computation that never came back is not waited
    for: the order that follows is understood."""
    monkeypatch.setattr(tracking, "MAX_COMPUTATIONS", 50)
    feed = Feed()
    feed.say([Step(0, "recompute", 77)])  # sequence 1, so taken for the iteration's first
    for m in range(120):
        feed.say([Step(0, "backward", m % 7 + 1)])
        assert feed.track.position <= 51
    for _ in range(4):
        feed.say(ORDER)
    assert feed.track.order == ORDER


@given(
    st.lists(st.tuples(st.integers(0, 30), st.floats(-0.2, 0.6)), min_size=1, max_size=8),
    st.integers(0, 3),
)
def test_ranks_that_count_for_themselves_are_aligned(
    ranks: list[tuple[int, float]], ahead: int
) -> None:
    """Each rank counts from where it was joined and starts a part of an iteration later than rank
    0; the offsets make every rank call the same iteration alike, also where the newest one heard
    of is not the same on all."""
    length = 1_000_000
    latest, true = [], []
    for rank, (joined, shift) in enumerate(ranks):
        newest = 50 + (ahead if rank else 0)
        shift = shift if rank else 0.0
        latest.append((newest - joined, int((newest + shift) * length)))
        true.append(joined)
    offsets = aligned_numbers(latest, length)
    assert [o - offsets[0] for o in offsets] == [j - true[0] for j in true]
    assert offsets[0] == 0
