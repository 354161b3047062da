"""Which clock a GPU ran at when, from the writes that were made."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from perseusd.core.energy.attribution import Activities, Column
from perseusd.core.events.pacing import SETTLE_NS
from perseusd.core.model import Kind

KEPT_NS = 600 * 10**9
"""Writes older than ten minutes are forgotten: no iteration that is still open is that long."""

MOST_MHZ = 1 << 20
"""More than any clock."""

Ints = NDArray[np.int64]


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

    def changes(self, start_ns: int, end_ns: int) -> tuple[Ints, Ints]:
        """When the clock changed between two moments, (k,), and what it was meanwhile, (k + 1,)."""
        first = bisect.bisect_right(self._at_ns, start_ns)
        last = bisect.bisect_left(self._at_ns, end_ns, lo=first)
        before = self._clock_mhz[first - 1] if first else self.top_mhz
        clock_mhz = [before, *self._clock_mhz[first:last]]
        return np.array(self._at_ns[first:last], dtype=np.int64), np.array(clock_mhz)

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


def activities(
    kinds: Sequence[Kind], kind: Ints, stamps_ns: Ints, since_ns: int, log: ClockLog
) -> Activities:
    """What a GPU did from `since_ns` to its last computation's end, cut where its clock changed.

    kinds: ascending, of one rank; kind: (n,) which of them each computation was; stamps_ns: (n, 2)
    when it began and ended, ascending.
    """
    edges_ns = np.concatenate([[since_ns], np.maximum(stamps_ns, since_ns).ravel()])
    what = np.full(2 * len(kind), -1)
    what[1::2] = kind
    at_ns, clock_mhz = log.changes(since_ns, int(edges_ns[-1]))
    during = edges_ns.searchsorted(at_ns, side="right") - 1
    cut = what[during] >= 0
    after = during[cut] + 1
    edges_ns, what = np.insert(edges_ns, after, at_ns[cut]), np.insert(what, after, what[after - 1])
    clock = clock_mhz[at_ns.searchsorted(edges_ns[:-1], side="right")]
    lasting = np.diff(edges_ns) > 0
    column = np.where(what < 0, -1, what * MOST_MHZ + clock)[lasting]
    found, of = np.unique(column, return_inverse=True)
    columns = tuple(
        None if code < 0 else Column(kinds[code // MOST_MHZ], code % MOST_MHZ)
        for code in found.tolist()
    )
    return Activities(np.append(edges_ns[:-1][lasting], edges_ns[-1]), columns, of)
