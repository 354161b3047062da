"""Which clock a GPU ran at when follows from the writes that were made."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from perseusd.core.energy.attribution import Activity
from perseusd.core.events.clocklog import KEPT_NS, ClockLog, activities
from perseusd.core.events.pacing import SETTLE_NS
from perseusd.core.events.tracking import Span, Step
from perseusd.core.model import Kind

MS = 1_000_000
stamps = st.integers(0, 10**11)


def test_a_write_counts_from_when_it_settled() -> None:
    """Before the first write the top clock; None is the top clock again."""
    log = ClockLog(1410)
    log.written(100 * MS, 1200)
    log.written(200 * MS, None)
    first, second = 100 * MS + SETTLE_NS, 200 * MS + SETTLE_NS
    assert list(log.pieces(50 * MS, 300 * MS)) == [
        (50 * MS, first, 1410),
        (first, second, 1200),
        (second, 300 * MS, 1410),
    ]
    assert list(log.pieces(150 * MS, 160 * MS)) == [(150 * MS, 160 * MS, 1200)]


@given(st.lists(st.tuples(stamps, st.sampled_from((None, 900, 1200))), max_size=8), stamps, stamps)
def test_pieces_cover_any_time_without_gap_or_overlap(
    writes: list[tuple[int, int | None]], start_ns: int, length_ns: int
) -> None:
    """Every nanosecond has exactly one clock."""
    log = ClockLog(1410)
    for at, clock in sorted(writes, key=lambda w: w[0]):
        log.written(at, clock)
    pieces = list(log.pieces(start_ns, start_ns + length_ns))
    assert sum(b - a for a, b, _ in pieces) == length_ns
    assert all(before[1] == after[0] for before, after in pairwise(pieces))
    assert all(a < b for a, b, _ in pieces)


def test_old_writes_are_forgotten_but_not_what_they_set() -> None:
    """Memory is bounded, and the clock in force at the edge of memory is still known."""
    log = ClockLog(1410)
    for i in range(2000):
        log.written(i * 10**9, 900 + i % 2)
    assert len(log._at_ns) <= KEPT_NS // 10**9 + 2
    (piece,) = log.pieces(1500 * 10**9 + 500 * MS, 1500 * 10**9 + 600 * MS)
    assert piece[2] == 900


def _span(instruction: str, start_ms: int, end_ms: int) -> Span:
    return Span(Step(0, instruction, 0), start_ms * MS, end_ms * MS)


def test_activities_have_no_gaps_and_name_the_clock() -> None:
    """Waits before, between and cut computations, from the given moment to the last end."""
    log = ClockLog(1410)
    log.written(150 * MS - SETTLE_NS, 1200)
    spans = [_span("forward", 100, 200), _span("backward", 200, 300), _span("forward", 350, 400)]
    forward, backward = Kind(3, 0, "forward"), Kind(3, 0, "backward")
    assert activities(3, spans, 50 * MS, log) == [
        Activity(50 * MS, 100 * MS, None, 0),
        Activity(100 * MS, 150 * MS, forward, 1410),
        Activity(150 * MS, 200 * MS, forward, 1200),
        Activity(200 * MS, 300 * MS, backward, 1200),
        Activity(300 * MS, 350 * MS, None, 0),
        Activity(350 * MS, 400 * MS, forward, 1200),
    ]


@given(st.lists(st.tuples(stamps, stamps), min_size=1, max_size=6), stamps)
def test_activities_of_any_spans_are_contiguous(
    pairs: list[tuple[int, int]], since_ns: int
) -> None:
    """Spans of no length or before `since_ns` leave no hole and no overlap."""
    edges = sorted(stamp for pair in pairs for stamp in pair)
    spans = [
        Span(Step(0, "forward", 0), a, b) for a, b in zip(edges[::2], edges[1::2], strict=True)
    ]
    found = activities(0, spans, since_ns, ClockLog(1410))
    assert all(before.end_ns == after.start_ns for before, after in pairwise(found))
    if found:
        assert found[0].start_ns == since_ns
        assert found[-1].end_ns == max(since_ns, edges[-1])
