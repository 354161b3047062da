"""Why a rank is slow, where NVML's reason bits tell.

Only a reason that became more frequent counts: a GPU that always sits at its power cap is not slow
because of that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

CAUSES = (
    ("hw_thermal", "thermal"),
    ("sw_thermal", "thermal"),
    ("power_brake", "power_brake"),
    ("hw_power_brake", "power_brake"),
    ("sw_power_cap", "power_cap"),
    ("hw_slowdown", "hardware_slowdown"),
)
"""Reason → cause, the most telling first: a hardware slowdown comes with what it is due to."""

MORE_OFTEN = 0.4
"""By how much the share of iterations with the reason must have grown."""

FEWEST = 3
"""Iterations before that a comparison needs."""

OFTEN_NORMAL = frozenset({"sw_power_cap"})
"""Reasons that a healthy GPU may have all the time, so that nothing follows without a past."""

REMEMBERED = 64


class Reasons:
    """What was active on each rank, iteration by iteration."""

    def __init__(self) -> None:
        self._seen: dict[int, deque[frozenset[str]]] = {}

    def note(self, reasons: Mapping[int, frozenset[str]]) -> None:
        for rank, active in reasons.items():
            seen = self._seen.setdefault(rank, deque(maxlen=REMEMBERED))
            seen.append(frozenset(name.lower() for name in active))

    def cause(self, rank: int, length: int) -> str | None:
        """What is active more often in the last `length` iterations than before them."""
        seen = list(self._seen.get(rank, ()))
        if not seen:
            return None
        length = min(length, max(len(seen) // 2, 1))
        before, since = seen[:-length], seen[-length:]
        best, why = MORE_OFTEN, None
        for name, cause in CAUSES:
            if len(before) < FEWEST and name in OFTEN_NORMAL:
                continue
            more = _share(name, since) - (_share(name, before) if before else 0.0)
            if more > best:
                best, why = more, cause
        return why

    def forget(self) -> None:
        self._seen.clear()


def _share(name: str, seen: list[frozenset[str]]) -> float:
    return sum(name in active for active in seen) / len(seen)
