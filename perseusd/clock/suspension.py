"""Whether the machine has slept: drivers forget locks in suspend, and nothing else tells of it.

CLOCK_BOOTTIME goes on while the machine sleeps, CLOCK_MONOTONIC does not, so the time between them
grows by as long as it slept, and by nothing else.
"""

from __future__ import annotations

import time

_NS = 1_000_000_000

_NOTICED_NS = _NS // 10
"""The two clocks are read one after the other: a process that is stopped in between looks like a
short sleep, and is read again."""

_READS = 3


class Suspension:
    """Notices that the machine has slept since it was last asked."""

    def __init__(self) -> None:
        self._apart_ns = _apart_ns()

    def slept_s(self) -> float:
        """For how long since the last call; 0 if it has not."""
        before, self._apart_ns = self._apart_ns, _apart_ns()
        slept_ns = self._apart_ns - before
        return slept_ns / _NS if slept_ns > _NOTICED_NS else 0.0


def _apart_ns() -> int:
    """By how much CLOCK_BOOTTIME is ahead: the least of a few readings."""
    return min(_ahead_ns() for _ in range(_READS))


def _ahead_ns() -> int:
    monotonic_ns = time.monotonic_ns()
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - monotonic_ns
