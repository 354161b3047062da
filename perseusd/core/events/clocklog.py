"""Which clock a GPU ran at when, from the writes that were made."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from perseusd.core.energy.attribution import Activity
from perseusd.core.events.pacing import SETTLE_NS
from perseusd.core.events.tracking import Span
from perseusd.core.model import Kind

KEPT_NS = 600 * 10**9
"""Writes older than ten minutes are forgotten: no iteration that is still open is that long."""


@dataclass
class ClockLog:
    """Clock changes of one GPU; before the first, its top clock."""

    top_mhz: int
    _at_ns: list[int] = field(default_factory=list)
    _clock_mhz: list[int] = field(default_factory=list)

    def written(self, end_ns: int, clock_mhz: int | None) -> None:
        """A write returned at `end_ns`; the clock follows SETTLE_NS later."""
        self._at_ns.append(end_ns + SETTLE_NS)
        self._clock_mhz.append(clock_mhz if clock_mhz is not None else self.top_mhz)
        stale = bisect.bisect_left(self._at_ns, end_ns - KEPT_NS)
        if stale > 1:
            del self._at_ns[: stale - 1], self._clock_mhz[: stale - 1]

    def pieces(self, start_ns: int, end_ns: int) -> Iterator[tuple[int, int, int]]:
        """(start, end, clock) pieces that cover [start, end) in order."""
        index = bisect.bisect_right(self._at_ns, start_ns)
        while start_ns < end_ns:
            until = self._at_ns[index] if index < len(self._at_ns) else end_ns
            until = min(until, end_ns)
            clock = self._clock_mhz[index - 1] if index else self.top_mhz
            if until > start_ns:
                yield start_ns, until, clock
            start_ns, index = max(start_ns, until), index + 1


def activities(rank: int, spans: Sequence[Span], since_ns: int, log: ClockLog) -> list[Activity]:
    """What a GPU did from `since_ns` to its last span's end, cut where its clock changed."""
    result: list[Activity] = []
    at_ns = since_ns
    for span in spans:
        if span.start_ns > at_ns:
            result.append(Activity(at_ns, span.start_ns, None, 0))
        kind = Kind(rank, span.step.chunk, span.step.instruction)
        start_ns = max(span.start_ns, at_ns)
        result += [Activity(a, b, kind, c) for a, b, c in log.pieces(start_ns, span.end_ns)]
        at_ns = max(at_ns, span.end_ns)
    return result
