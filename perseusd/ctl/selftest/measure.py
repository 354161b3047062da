"""One GPU's clocks, written and read back: how long a write takes, and whether the GPU follows.

A driver that says yes has installed a lock, and that is all it says; only the observed clock tells
whether the GPU obeys. An idle GPU may stay at an idle clock whatever is locked, and power or heat
may keep a busy one below it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from perseusd.ctl.selftest.clocks import Clocks, refused
from perseusd.gpus.base import ClockReason, Gpu

PARTS = (0.95, 0.8, 0.65)
"""Of the highest clock: those that are tried, all above perseusd-clock's own limit."""

FOLLOWS_WITHIN_S = 1.0
PAUSE_S = 0.06
"""Between writes: perseusd-clock takes 20 a second."""

_TOLERANCE = 0.02  # of a clock: it is read in steps
_POLL_S = 0.001
_LIMITS = (
    ClockReason.SW_POWER_CAP
    | ClockReason.HW_SLOWDOWN
    | ClockReason.SW_THERMAL
    | ClockReason.HW_THERMAL
    | ClockReason.HW_POWER_BRAKE
)


@dataclass
class Measured:
    """What became of one GPU's writes; times in seconds.

    under: "load" or "idle". followed_s: from the end of the driver's call until the GPU was
    observed at the clock, for the locks that it followed. limited: how often power or heat stood in
    the way.
    """

    gpu: Gpu
    under: str
    clocks_mhz: Sequence[int]
    before_mhz: int
    locks: int = 0
    lock_s: list[float] = field(default_factory=list)
    asked_s: list[float] = field(default_factory=list)
    reset_s: list[float] = field(default_factory=list)
    followed_s: list[float] = field(default_factory=list)
    limited: int = 0
    after_mhz: int | None = None
    errors: list[str] = field(default_factory=list)

    @property
    def obeyed(self) -> bool:
        """Every lock was seen to be followed, but for those that power or heat explains."""
        return len(self.followed_s) + self.limited == len(self.lock_s) > 0

    @property
    def restored(self) -> bool:
        """After the last reset the GPU came back to where it had been."""
        return self.after_mhz is not None and self.after_mhz >= self.before_mhz * (1 - _TOLERANCE)


def clocks_to_try(supported_mhz: Sequence[int]) -> list[int]:
    """Descending, each the supported clock next to its part of the highest."""
    highest = max(supported_mhz)
    near = {min(supported_mhz, key=lambda mhz: abs(mhz - part * highest)) for part in PARTS}
    return sorted(near, reverse=True)


def measure(clocks: Clocks, gpu: Gpu, rounds: int) -> Measured:
    """Each clock `rounds` times, a reset after each round."""
    idle = ClockReason.IDLE in gpu.reasons() or not gpu.process_ids()
    tried = clocks_to_try(gpu.info.supported_clocks_mhz)
    found = Measured(gpu, "idle" if idle else "load", tried, gpu.clock_mhz())
    for _ in range(rounds):
        for clock_mhz in tried:
            if not _lock(clocks, found, clock_mhz):
                break
        _reset(clocks, found)
        if found.errors:
            break
    return found


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Median, 90th and 99th percentile (nearest rank) and maximum."""
    if not values:
        return None
    ordered = sorted(values)
    ranks = {f"p{q}": ordered[math.ceil(q / 100 * len(ordered)) - 1] for q in (50, 90, 99)}
    return {**ranks, "max": ordered[-1]}


def _lock(clocks: Clocks, found: Measured, clock_mhz: int) -> bool:
    found.locks += 1
    asked_ns = time.monotonic_ns()
    result = clocks.write(found.gpu.info.uuid, clock_mhz)
    if (why := refused(result)) is not None:
        found.errors.append(f"lock to {clock_mhz} MHz: {why}")
        return False
    found.lock_s.append((result.end_ns - result.start_ns) * 1e-9)
    found.asked_s.append((time.monotonic_ns() - asked_ns) * 1e-9)
    if _arrives(clocks, found.gpu, clock_mhz, clock_mhz):
        found.followed_s.append((time.monotonic_ns() - result.end_ns) * 1e-9)
    elif found.gpu.clock_mhz() < clock_mhz and found.gpu.reasons() & _LIMITS:
        found.limited += 1
    clocks.rest(PAUSE_S)
    return True


def _reset(clocks: Clocks, found: Measured) -> None:
    result = clocks.write(found.gpu.info.uuid, None)
    if (why := refused(result)) is not None:
        found.errors.append(f"reset: {why}")
        return
    found.reset_s.append((result.end_ns - result.start_ns) * 1e-9)
    _arrives(clocks, found.gpu, found.before_mhz, found.gpu.info.supported_clocks_mhz[-1])
    found.after_mhz = found.gpu.clock_mhz()
    clocks.rest(PAUSE_S)


def _arrives(clocks: Clocks, gpu: Gpu, lowest_mhz: int, highest_mhz: int) -> bool:
    """Whether its observed clock comes to lie between these in time."""
    deadline = time.monotonic() + FOLLOWS_WITHIN_S
    lowest, highest = lowest_mhz * (1 - _TOLERANCE), highest_mhz * (1 + _TOLERANCE)
    while not lowest <= gpu.clock_mhz() <= highest:
        if time.monotonic() > deadline:
            return False
        clocks.rest(_POLL_S)
    return True
