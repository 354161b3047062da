"""One emulated GPU in virtual time: its clock, its present work, its energy.

Work progresses as in `gpus.physics`: at clock c at the rate 1 / (factor × time_s[c]), drawing
energy_j[c] / time_s[c]; only what has been done so far is kept instead of a history of clocks.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from perseusd.emulation.fasttime.virtual import NS
from perseusd.gpus.physics import WorkCurve

KEPT_PIECES = 8192
"""Pieces of constant power that are kept: no counter is later than that."""


class FastGpu:
    """clocks_mhz ascend; blocking_w: what waiting draws."""

    def __init__(self, clocks_mhz: Sequence[int], blocking_w: float) -> None:
        self.clocks_mhz = clocks_mhz
        self.blocking_w = blocking_w
        self.top = len(clocks_mhz) - 1
        self.index = self.top
        self._curve: WorkCurve | None = None
        self._factor = 1.0
        self._done = 0.0
        self._since_ns = 0
        self._at: list[int] = [0]
        self._joules: list[float] = [0.0]
        self._watts: list[float] = [blocking_w]

    @property
    def working(self) -> bool:
        return self._curve is not None

    def start(self, now: int, curve: WorkCurve, factor: float) -> int:
        """Work begins; returns when it ends if the clock stays."""
        self._curve, self._factor, self._done, self._since_ns = curve, factor, 0.0, now
        self._draw(now, curve.power_w(self.index))
        return self._end_ns()

    def stop(self, now: int) -> None:
        """The work has ended: from now on the GPU waits."""
        self._curve = None
        self._draw(now, self.blocking_w)

    def set_clock(self, now: int, index: int) -> int | None:
        """From now on this clock; returns when the present work ends, None where there is none."""
        curve, before, self.index = self._curve, self.index, index
        if curve is None:
            return None
        self._done += (now - self._since_ns) / NS / (self._factor * curve.time_s[before])
        self._since_ns = now
        self._draw(now, curve.power_w(index))
        return self._end_ns()

    def energy(self, at_ns: int) -> float:
        """Joules drawn until then."""
        piece = bisect.bisect_right(self._at, at_ns) - 1
        return self._joules[piece] + self._watts[piece] * (at_ns - self._at[piece]) / NS

    def _end_ns(self) -> int:
        assert self._curve is not None
        left = max(0.0, 1.0 - self._done)
        return self._since_ns + round(left * self._factor * self._curve.time_s[self.index] * NS)

    def _draw(self, now: int, watts: float) -> None:
        last = self._at[-1]
        self._joules.append(self._joules[-1] + self._watts[-1] * (now - last) / NS)
        self._at.append(now)
        self._watts.append(watts)
        if len(self._at) > KEPT_PIECES:
            for pieces in (self._at, self._joules, self._watts):
                del pieces[: KEPT_PIECES // 2]
