"""What fills the daemon's memory from outside is cut off before there is none left.

ZeroMQ keeps a message until it is whole, and sets no limit to how many frames one may have: whoever
may connect could send one without end. The memory goes with the connection. So where the daemon has
grown far beyond what it ever needs, the connections that press are shut down, and if that is not
enough, all of them: clients come back by themselves, and lose what they sent meanwhile.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import resource
from collections.abc import Callable, Sequence

from perseusd.daemon.doors import Door

log = logging.getLogger(__name__)

MEBIBYTE = 1 << 20

LIMIT_MB = 512.0
"""Several times what a daemon with eight GPUs and a thousand clients takes."""

LOOK_EVERY_S = 0.02
HEAVY_BYTES = 32_768
"""That wait in a connection's buffer at two looks: a trainer's events are a few hundred."""

PATIENCE_S = 1.0

GIVE_BACK_S = 1.0
"""After a cut, while ZeroMQ lets go of what came with the connection."""

_STATM = "/proc/self/statm"
_STATM_BYTES = 128
"""More than its one line takes."""


def resident_mb() -> float:
    """This process's memory now, in MiB; by plain calls, which take a third of what a file does."""
    statm = os.open(_STATM, os.O_RDONLY | os.O_CLOEXEC)
    try:
        told = os.read(statm, _STATM_BYTES)
    finally:
        os.close(statm)
    return int(told.split(None, 2)[1]) * resource.getpagesize() / MEBIBYTE


def give_back() -> None:
    """To the system, what was freed: the C library may keep it, and it would count as in use."""
    with contextlib.suppress(AttributeError):  # another C library than GNU's
        ctypes.CDLL(None).malloc_trim(0)


class Pressure:
    """Looks at the memory and, where it is too much, at who is behind the doors."""

    def __init__(
        self,
        doors: Sequence[Door],
        limit_mb: float = LIMIT_MB,
        memory_mb: Callable[[], float] = resident_mb,
    ) -> None:
        self._doors = doors
        self._memory_mb = memory_mb
        self._first_limit_mb = self._limit_mb = limit_mb
        self._due_s = 0.0
        self._since_s: float | None = None
        self._heavy: set[tuple[Door, int]] = set()
        self._cut_s = -GIVE_BACK_S

    def relieve(self, now_s: float) -> None:
        """To be called at every turn of the loop; costs next to nothing while all is well."""
        if now_s < self._due_s:
            return
        self._due_s = now_s + LOOK_EVERY_S
        if now_s - self._cut_s < GIVE_BACK_S:
            give_back()
        used_mb = self._memory_mb()
        if used_mb <= self._limit_mb:
            self._since_s, self._heavy = None, set()
            return
        if self._since_s is None:
            self._since_s = now_s
        heavy = {(door, fd) for door in self._doors for fd in door.pressing(HEAVY_BYTES)}
        again = heavy & self._heavy
        self._heavy = heavy - again
        for door, descriptor in again:
            door.cut(descriptor, "it sends far more than is taken, and the daemon's memory fills")
        if again:
            self._since_s = self._cut_s = now_s
        elif now_s - self._since_s > PATIENCE_S:
            self._cut_all(used_mb, now_s)

    def _cut_all(self, used_mb: float, now_s: float) -> None:
        log.error("%.0f MiB in use: all connections are shut down; clients come back", used_mb)
        for door in self._doors:
            door.cut_all("the daemon's memory was full")
        self._cut_s = now_s
        # What does not come back was not theirs: nobody is cut off for it again.
        self._limit_mb = max(self._first_limit_mb, used_mb + self._first_limit_mb / 2)
        self._since_s = None
