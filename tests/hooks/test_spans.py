"""Open spans: bounded, and never confused."""

from __future__ import annotations

from perseus_hooks.spans import MAX_DEPTH, Spans


def test_spans_that_are_never_ended_are_given_up() -> None:
    """A trainer that forgets stage_end costs no memory, and later spans end properly."""
    spans = Spans()
    tokens = [spans.start() for _ in range(10 * MAX_DEPTH)]
    assert len(spans._stacks) == MAX_DEPTH
    assert spans.end(tokens[0]) is None
    assert spans.end() == tokens[-1]
    assert spans.end(tokens[-3]) == tokens[-3]


def test_an_end_without_a_start_is_nothing() -> None:
    """Neither an empty stack nor an unknown token is an error."""
    spans = Spans()
    assert spans.end() is None
    assert spans.end(7) is None
