"""What the clock process allows, and what it does next for each GPU. Pure: no clock, no driver.

Of each GPU at most one request is being carried out and one waits; a newer request replaces the
waiting one, since only the newest can still be right. Resets are always allowed, and a lock that
is refused or fails is followed by one: the older lock that it was to replace is nobody's wish now.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from perseusd.clock.protocol import UNASKED, UNLOCKED, ResultCode
from perseusd.gpus.base import GpuInfo

_NS = 1_000_000_000


@dataclass(frozen=True)
class Limits:
    """The rails.

    min_clock_fraction: of the highest clock; below about half of it every GPU measured wastes
    energy. allow_mig: whether a GPU that MIG divides may be locked, whose parts share one clock.
    writes_per_s, burst: per GPU, resets not counted; drivers suffer from more.
    """

    min_clock_fraction: float = 0.5
    allow_mig: bool = False
    writes_per_s: float = 20.0
    burst: int = 10


class Ask(NamedTuple):
    """A request for one GPU: whose (connection, request_id), and the clock or UNLOCKED."""

    connection: int
    request_id: int
    clock_mhz: int


class Answer(NamedTuple):
    """A request that ended without a driver call."""

    ask: Ask
    code: ResultCode


UNASKED_RESET = Ask(0, UNASKED, UNLOCKED)


class RateLimit:
    """A token bucket: `burst` at once, refilled at `per_s`."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s = per_s
        self._burst = burst
        self._tokens = float(burst)
        self._filled_ns: int | None = None

    def take(self, now_ns: int) -> bool:
        if self._filled_ns is not None:
            grown = max(0, now_ns - self._filled_ns) / _NS * self._per_s
            self._tokens = min(float(self._burst), self._tokens + grown)
        self._filled_ns = now_ns
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class GpuDesk:
    """One GPU's requests.

    may_be_locked: from the start of the first lock until a reset has succeeded. Said of a GPU at
    the start, it is owed a reset.
    running: the request being carried out, if any.
    """

    def __init__(
        self,
        gpu: GpuInfo,
        limits: Limits,
        may_be_locked: bool = False,
        standing_mhz: int | None = None,
    ) -> None:
        """standing_mhz: the site's own lock, which is full clock here: what a reset leads to."""
        self.gpu = gpu
        self.standing_mhz = standing_mhz
        self.may_be_locked = may_be_locked
        self.running: Ask | None = None
        self._pending: Ask | None = None
        self._owes_reset = may_be_locked
        self._installed_mhz: int | None = None  # what our last write left; None: not known
        self._allow_mig = limits.allow_mig
        self._rate = RateLimit(limits.writes_per_s, limits.burst)
        clocks = gpu.supported_clocks_mhz
        self._allowed = {mhz for mhz in clocks if standing_mhz is None or mhz <= standing_mhz}
        highest = max(self._allowed, default=0)
        self._floor_mhz = limits.min_clock_fraction * highest

    def refusal(self, clock_mhz: int) -> ResultCode | None:
        """Why this clock is never allowed on this GPU, or None."""
        if clock_mhz == UNLOCKED:
            return None
        if self.gpu.mig_enabled and not self._allow_mig:
            return ResultCode.MIG
        if clock_mhz not in self._allowed:
            return ResultCode.UNSUPPORTED_CLOCK
        return ResultCode.BELOW_FLOOR if clock_mhz < self._floor_mhz else None

    def ask(self, ask: Ask) -> list[Answer]:
        """Take a request in, to be begun by `begin`; answers to it or to the one it replaces."""
        code = self.refusal(ask.clock_mhz)
        if code is not None:
            self.owe_reset()
            return [Answer(ask, code)]
        replaced, self._pending = self._pending, ask
        return [] if replaced is None else [Answer(replaced, ResultCode.SUPERSEDED)]

    def begin(self, now_ns: int) -> Ask | Answer | None:
        """The write to start now, or an answer that needs no write, or nothing to do."""
        if self._pending is None or self.running is not None:
            return None
        ask, self._pending = self._pending, None
        if ask.clock_mhz == self._installed_mhz:
            return Answer(ask, ResultCode.OK)
        if ask.clock_mhz != UNLOCKED:
            if not self._rate.take(now_ns):
                self.owe_reset()
                return Answer(ask, ResultCode.TOO_MANY_WRITES)
            self.may_be_locked = True
            self._owes_reset = False
        self.running = ask
        return ask

    def finish(self, code: ResultCode) -> Ask:
        """The running write has ended; the request it was for."""
        ask, self.running = self.running, None
        if ask is None:
            raise RuntimeError("a clock write ended that was never begun")
        self._installed_mhz = ask.clock_mhz if code is ResultCode.OK else None
        if code is not ResultCode.OK:
            self.owe_reset()
        elif ask.clock_mhz == UNLOCKED:
            self.may_be_locked = self._owes_reset = False
        return ask

    def withdraw_locks(self) -> list[Answer]:
        """Drop a waiting lock, because its daemon is not there; its answer."""
        if self._pending is None or self._pending.clock_mhz == UNLOCKED:
            return []
        dropped, self._pending = self._pending, None
        return [Answer(dropped, ResultCode.NO_HEARTBEAT)]

    def owe_reset(self) -> None:
        """No lock on it is wanted: if it may be locked it is reset, until that has worked."""
        self._owes_reset = self.may_be_locked

    def disown(self) -> None:
        """Another tool has set this clock: nothing is owed, if what we wrote last is known."""
        if self.running is None and self._pending is None and self._installed_mhz is not None:
            self.may_be_locked = self._owes_reset = False
            self._installed_mhz = None

    def doubt(self) -> None:
        """The driver may have forgotten what we wrote."""
        self._installed_mhz = None
        self.owe_reset()

    @property
    def reset_due(self) -> bool:
        """A reset is owed, and none is under way."""
        under_way = any(
            ask is not None and ask.clock_mhz == UNLOCKED for ask in (self.running, self._pending)
        )
        return self._owes_reset and not under_way
