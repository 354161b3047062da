"""Whether another tool sets a GPU's clock, by what is read of a GPU that computes.

A driver has one lock, the last one written, and none can be read back. So another writer shows only
in clocks that contradict what we ourselves have written: several loaded readings, all alike, which
nothing of the GPU's own (power, heat) explains. Such a lock is respected until it is gone or an
operator says otherwise.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

TOLERANCE = 0.02
"""Of a clock: more than the step between two clocks."""

LOOKED_AT = 8
"""Comparable readings, the newest."""

MOST = 6
"""Of LOOKED_AT: so many have to contradict, and to agree with each other."""

BELOW_USUAL = 0.05
"""Unlocked GPUs vary with temperature; by so much below what it has shown, it is held down."""

BELOW_TOP = 0.15
"""The same against the highest clock, for a GPU whose own full clock was not seen yet: some never
reach the highest without any reason being told."""

GONE_NS = 30_000_000_000
"""A foreign lock is gone after so long at full clock; each time it comes back, twice as long."""

MOST_PATIENCE = 128

FRESH_NS = 60_000_000_000
"""What was compared longer ago says nothing of now."""


class Intent(NamedTuple):
    """What we have written, and since when that stands: None is full clock."""

    clock_mhz: int | None
    since_ns: int


class Reading(NamedTuple):
    """A clock of a GPU that computes. limited: power, heat or the like keeps it down."""

    time_ns: int
    clock_mhz: int
    limited: bool


@dataclass
class ForeignWatch:
    """One GPU's. full_mhz: its highest clock, or the site's own standing lock.

    suspected_mhz: the clock that another tool has set, as far as is known; None: nobody has.
    """

    full_mhz: int
    suspected_mhz: int | None = None
    _usual_mhz: int = 0
    """The highest that was seen where full clock was written."""
    _obeyed: bool = False
    """A lock of ours has been seen to work."""
    _agreed: deque[bool] = field(default_factory=lambda: deque(maxlen=LOOKED_AT))
    """Of the newest comparable readings, whether each was as written."""
    _compared_ns: int = 0
    _contradictions: deque[int | None] = field(default_factory=lambda: deque(maxlen=LOOKED_AT))
    _patience: int = 1
    _full_since_ns: int | None = None

    def read(self, reading: Reading, intent: Intent | None) -> None:
        """intent: None while it is not known what stands, such as during a write of ours."""
        if self.suspected_mhz is not None:
            self._look_for_its_end(reading)
        elif intent is not None and reading.time_ns >= intent.since_ns and not reading.limited:
            self._compared_ns = reading.time_ns
            self._compare(reading.clock_mhz, intent.clock_mhz)

    def agrees(self, now_ns: int) -> bool | None:
        """Whether it runs as written; None: it has not computed lately, so that nothing tells."""
        if self.suspected_mhz is not None:
            return False
        if len(self._agreed) < LOOKED_AT or now_ns - self._compared_ns > FRESH_NS:
            return None
        return self._agreed.count(False) < MOST

    def forgive(self) -> None:
        """An operator says that the clock is ours."""
        self.suspected_mhz, self._patience = None, 1
        self._contradictions.clear()
        self._agreed.clear()

    def _compare(self, clock_mhz: int, written_mhz: int | None) -> None:
        agrees = self._is_full(clock_mhz) if written_mhz is None else alike(clock_mhz, written_mhz)
        self._agreed.append(agrees)
        if agrees and written_mhz is None:
            self._usual_mhz = max(self._usual_mhz, clock_mhz)
        elif agrees and clock_mhz < (self._usual_mhz or self.full_mhz) * (1 - BELOW_USUAL):
            self._obeyed = True
        elif written_mhz is not None and clock_mhz > written_mhz and not self._obeyed:
            return  # a GPU that no lock has moved yet: it may not let itself be locked at all
        self._contradictions.append(None if agrees else clock_mhz)
        against = [mhz for mhz in self._contradictions if mhz is not None]
        if len(against) >= MOST and alike(min(against), max(against)):
            self.suspected_mhz, self._full_since_ns = against[-1], None
            self._contradictions.clear()

    def _is_full(self, clock_mhz: int) -> bool:
        usual = self._usual_mhz * (1 - BELOW_USUAL)
        return clock_mhz >= (usual or self.full_mhz * (1 - BELOW_TOP))

    def _look_for_its_end(self, reading: Reading) -> None:
        if not self._is_full(reading.clock_mhz):
            if not reading.limited:
                self._full_since_ns = None
            return
        if self._full_since_ns is None:
            self._full_since_ns = reading.time_ns
        elif reading.time_ns - self._full_since_ns >= self._patience * GONE_NS:
            self._patience = min(2 * self._patience, MOST_PATIENCE)
            self.suspected_mhz = None


def alike(one_mhz: int, other_mhz: int) -> bool:
    return abs(one_mhz - other_mhz) <= TOLERANCE * max(one_mhz, other_mhz)
