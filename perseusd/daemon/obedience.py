"""Whether GPUs run at the clock that was asked for: what is read between writes tells.

One reading tells little: a clock is read while a write is under way, or while the GPU idles. So
only readings of a clock that stood for a while count, and several have to say the same.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from enum import StrEnum

from perseusd.daemon.sampler import GpuState

SETTLE_NS = 20_000_000
"""After a write's end: the clock has followed by then, on every GPU known to us within 2 ms."""

TOLERANCE = 0.02
"""Of the clock: more than the step between two clocks, less than between two rungs of learning."""

LOOKED_AT = 8
"""Comparable readings, the newest: some seconds of them."""

MOST = 6
"""Of LOOKED_AT: readings that agree on something else than what was asked for."""


class Follows(StrEnum):
    """How the clock of a GPU is to the clock that was asked for."""

    YES = "yes"
    ABOVE = "above"
    """It does not let itself be lowered."""
    BELOW = "below"
    """It is slowed by something else, too."""


@dataclass
class Obedience:
    """Kept by GPU; what is not known is None."""

    _written: dict[str, tuple[int | None, int]] = field(default_factory=dict)
    _seen: dict[str, deque[Follows]] = field(default_factory=dict)

    def written(self, uuid: str, clock_mhz: int | None, end_ns: int) -> None:
        """A clock write was done."""
        self._written[uuid] = clock_mhz, end_ns

    def read(self, state: GpuState, requested_mhz: int | None) -> None:
        """A GPU's clock was read. requested_mhz: what is asked for now."""
        written_mhz, end_ns = self._written.get(state.uuid, (None, 0))
        if requested_mhz is None or requested_mhz != written_mhz:
            return
        if state.time_ns < end_ns + SETTLE_NS or "idle" in state.reasons:
            return
        deviation = state.clock_mhz / requested_mhz - 1
        seen = self._seen.setdefault(state.uuid, deque(maxlen=LOOKED_AT))
        if abs(deviation) <= TOLERANCE:
            seen.append(Follows.YES)
        else:
            seen.append(Follows.ABOVE if deviation > 0 else Follows.BELOW)

    def follows(self, uuid: str) -> Follows | None:
        """None while too few readings could be compared."""
        seen = self._seen.get(uuid, ())
        if len(seen) < LOOKED_AT:
            return None
        usual, count = Counter(seen).most_common(1)[0]
        return usual if count >= MOST else Follows.YES
