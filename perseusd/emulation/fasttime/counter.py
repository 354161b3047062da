"""What a GPU's energy counter shows: ticks, a sensor that sees part of the time, and faults."""

from __future__ import annotations

from perseusd.emulation.fasttime.conditions import Conditions
from perseusd.emulation.fasttime.disturbances import (
    CounterFault,
    CounterJump,
    CounterReset,
    CounterStall,
)
from perseusd.emulation.fasttime.gpu import FastGpu
from perseusd.emulation.fasttime.virtual import NS


class Counter:
    """The counter of one GPU.

    phase_ns: when its first tick is; GPUs do not tick together.
    value_j: what it showed last; moves_ns: until then it shows that.
    """

    def __init__(self, gpu: FastGpu, conditions: Conditions, phase_ns: int) -> None:
        self._gpu = gpu
        self._tick_ns = round(conditions.counter_tick_s * NS)
        self._seen_ns = max(1, round(conditions.counter_window * self._tick_ns))
        self._blind_ns = self._tick_ns - self._seen_ns if conditions.counter_window_last else 0
        self._late_ns = round(conditions.counter_late_s * NS)
        self._phase_ns = phase_ns
        self.value_j = 0.0
        self.moves_ns = 0
        self._ticks = 0
        self._counted_j = 0.0
        self._offset_j = 0.0
        self._frozen: tuple[int, float, bool] | None = None

    def shown(self, now: int) -> float:
        """Its value; `now` never goes backwards."""
        self.value_j = self._read(now)
        if self._frozen is None:
            self.moves_ns = (self._ticks + 1) * self._tick_ns + self._phase_ns + self._late_ns
        else:
            self.moves_ns = self._frozen[0]
        return self.value_j

    def _read(self, now: int) -> float:
        if self._frozen is not None:
            until_ns, value, lost = self._frozen
            if now < until_ns:
                return value
            self._frozen = None
            self._count(until_ns)
            if lost:
                self._offset_j = value - self._counted_j
        self._count(now)
        return self._counted_j + self._offset_j

    def _count(self, now: int) -> None:
        ticks = max(0, now - self._late_ns - self._phase_ns) // self._tick_ns
        while self._ticks < ticks:
            self._counted_j += self._increment(self._phase_ns + self._ticks * self._tick_ns)
            self._ticks += 1

    def fail(self, now: int, fault: CounterFault) -> None:
        """A fault happens."""
        value = self._read(now)
        match fault:
            case CounterStall():
                self._frozen = now + round(fault.seconds * NS), value, fault.lost
            case CounterJump():
                self._offset_j += fault.joules
            case CounterReset():
                self._offset_j = -self._counted_j
        self.moves_ns = now

    def _increment(self, since_ns: int) -> float:
        """The tick's: what was drawn in the part that is seen, taken for the whole."""
        seen_since = since_ns + self._blind_ns
        seen = self._gpu.energy(seen_since + self._seen_ns) - self._gpu.energy(seen_since)
        return seen * (self._tick_ns / self._seen_ns)
