"""Energy between two moments, from a counter that ticks."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field

KEPT_TICKS = 20_000


@dataclass
class EnergyMeter:
    """One GPU's counter, read back at any past moment by interpolation between ticks.

    A counter that went backwards (driver reload) makes what lies across the jump unknown.
    """

    _at_ns: list[int] = field(default_factory=list)
    _joules: list[float] = field(default_factory=list)
    _polled_ns: int = 0
    latest_j: float | None = None

    def poll(self, time_ns: int, energy_j: float) -> None:
        before_ns, before_j = self._polled_ns, self.latest_j
        self._polled_ns, self.latest_j = time_ns, energy_j
        if before_j is None or energy_j == before_j:
            return
        if energy_j < before_j:
            self._at_ns.clear()
            self._joules.clear()
            return
        self._at_ns.append((before_ns + time_ns) // 2)
        self._joules.append(energy_j)
        if len(self._at_ns) > KEPT_TICKS:
            del self._at_ns[: KEPT_TICKS // 2], self._joules[: KEPT_TICKS // 2]

    def at(self, time_ns: int) -> float | None:
        """Joules at that moment; None where no ticks lie on both sides of it."""
        after = bisect.bisect_left(self._at_ns, time_ns)
        if after == 0 or after == len(self._at_ns):
            return None
        t0, t1 = self._at_ns[after - 1], self._at_ns[after]
        e0, e1 = self._joules[after - 1], self._joules[after]
        return e0 + (e1 - e0) * (time_ns - t0) / (t1 - t0)

    def between(self, start_ns: int, end_ns: int) -> float | None:
        first, last = self.at(start_ns), self.at(end_ns)
        return None if first is None or last is None else last - first
