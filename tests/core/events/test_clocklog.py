"""Which clock a GPU ran at when follows from the writes that were made."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from perseusd.core.events.clocklog import KEPT_NS, ClockLog, activities
from perseusd.core.events.pacing import SETTLE_NS
from perseusd.core.model import Kind
from tests.core.energy.activity import Activity, one_by_one

MS = 1_000_000
stamps = st.integers(0, 10**11)
few = st.integers(0, 30)
"""Moments that often coincide."""


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


FORWARD, BACKWARD = Kind(3, 0, "forward"), Kind(3, 0, "backward")
KINDS = (BACKWARD, FORWARD)


def lived(
    kinds: list[Kind], stamps_ns: list[tuple[int, int]], since_ns: int, log: ClockLog
) -> list[Activity]:
    kind, stamps = np.array([KINDS.index(k) for k in kinds]), np.array(stamps_ns, dtype=np.int64)
    return one_by_one(activities(KINDS, kind, stamps, since_ns, log))


def test_activities_have_no_gaps_and_name_the_clock() -> None:
    """Waits before, between and cut computations, from the given moment to the last end."""
    log = ClockLog(1410)
    log.written(150 * MS - SETTLE_NS, 1200)
    stamps_ns = [(a * MS, b * MS) for a, b in ((100, 200), (200, 300), (350, 400))]
    assert lived([FORWARD, BACKWARD, FORWARD], stamps_ns, 50 * MS, log) == [
        Activity(50 * MS, 100 * MS, None, 0),
        Activity(100 * MS, 150 * MS, FORWARD, 1410),
        Activity(150 * MS, 200 * MS, FORWARD, 1200),
        Activity(200 * MS, 300 * MS, BACKWARD, 1200),
        Activity(300 * MS, 350 * MS, None, 0),
        Activity(350 * MS, 400 * MS, FORWARD, 1200),
    ]


def plainly(
    kinds: list[Kind], stamps_ns: list[tuple[int, int]], since_ns: int, log: ClockLog
) -> list[Activity]:
    """Span after span."""
    result: list[Activity] = []
    at_ns = since_ns
    for kind, (start_ns, end_ns) in zip(kinds, stamps_ns, strict=True):
        if start_ns > at_ns:
            result.append(Activity(at_ns, start_ns, None, 0))
        pieces = log.pieces(max(start_ns, at_ns), end_ns)
        result += [Activity(a, b, kind, clock) for a, b, clock in pieces]
        at_ns = max(at_ns, end_ns)
    return result


@given(
    st.lists(st.tuples(few, few, st.sampled_from(KINDS)), min_size=1, max_size=6),
    few,
    st.lists(st.tuples(few, st.sampled_from((None, 900, 1200))), max_size=8),
)
def test_activities_of_any_spans_are_those_of_span_after_span(
    pairs: list[tuple[int, int, Kind]], since_ns: int, writes: list[tuple[int, int | None]]
) -> None:
    """Spans of no length, before `since_ns`, or cut by several writes leave no hole and no overlap;
    arrays find what a plain loop does."""
    edges = sorted(stamp for pair in pairs for stamp in pair[:2])
    stamps_ns = list(zip(edges[::2], edges[1::2], strict=True))
    kinds = [kind for _, _, kind in pairs]
    log = ClockLog(1410)
    for at, clock in sorted(writes, key=lambda w: w[0]):
        log.written(at - SETTLE_NS, clock)
    found = lived(kinds, stamps_ns, since_ns, log)
    assert found == plainly(kinds, stamps_ns, since_ns, log)
    assert all(before.end_ns == after.start_ns for before, after in pairwise(found))
    if found:
        assert found[0].start_ns == since_ns
        assert found[-1].end_ns == max(since_ns, edges[-1])
