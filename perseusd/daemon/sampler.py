"""Reads the GPUs in a thread of its own, so that a driver call that hangs delays nobody."""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from perseusd.errors import GpuError
from perseusd.gpus.base import ClockReason, Gpu

log = logging.getLogger(__name__)

STATE_INTERVAL_S = 0.25
"""How often clock, power and reasons are read: for people, who read no faster, and as a straggler's
cause, which lasts longer."""

KEPT_READINGS = 100_000
KEPT_STATES = 4096


class GpuState(NamedTuple):
    """A GPU's clock, and why it was not higher, at one moment. reasons: see `reason_names`."""

    uuid: str
    time_ns: int
    clock_mhz: int
    reasons: frozenset[str]


@cache
def reason_names(reasons: ClockReason) -> frozenset[str]:
    """NVML's names in lower case, such as `sw_thermal`; bits that have no name are left out."""
    return frozenset(str(r.name).lower() for r in ClockReason if r and r in reasons)


@dataclass
class GpuView:
    """The latest of a GPU; error: why it could not be read."""

    uuid: str
    energy_j: float | None = None
    power_w: float | None = None
    clock_mhz: int | None = None
    reasons: ClockReason = ClockReason.NONE
    read_s: float = 0.0
    error: str | None = None
    readings: int = 0
    """Of the energy counter, that worked."""
    failed: int = 0
    """Readings that did not."""


@dataclass
class Sampler:
    """`readings` and `states` are filled by the thread and drained by the loop.

    readings: (uuid, time_ns, joules), one every `interval_s`; states: one every STATE_INTERVAL_S.
    """

    gpus: Sequence[Gpu]
    interval_s: float
    views: dict[str, GpuView] = field(default_factory=dict)
    readings: collections.deque[tuple[str, int, float]] = field(
        default_factory=lambda: collections.deque(maxlen=KEPT_READINGS)
    )
    states: collections.deque[GpuState] = field(
        default_factory=lambda: collections.deque(maxlen=KEPT_STATES)
    )
    _stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.views = {gpu.info.uuid: GpuView(gpu.info.uuid) for gpu in self.gpus}
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=1.0)  # a hung driver call keeps it; it is a daemon thread

    def _run(self) -> None:
        state_due = 0.0
        while not self._stop.wait(self.interval_s):
            now = time.monotonic()
            whole = now >= state_due
            if whole:
                state_due = now + STATE_INTERVAL_S
            for gpu in self.gpus:
                self._read(gpu, whole)

    def _read(self, gpu: Gpu, whole: bool) -> None:
        view = self.views[gpu.info.uuid]
        try:
            joules = gpu.energy_j()
            stamp = time.monotonic_ns()
            if whole:
                view.power_w = gpu.power_w()
                self._read_state(gpu, view)
        except GpuError as error:
            if view.error is None:
                log.warning("cannot read GPU %s: %s", view.uuid, error)
            view.error = str(error)
            view.failed += 1
            return
        view.energy_j, view.read_s, view.error = joules, time.monotonic(), None
        view.readings += 1
        self.readings.append((view.uuid, stamp, joules))

    def _read_state(self, gpu: Gpu, view: GpuView) -> None:
        at_ns = time.monotonic_ns()  # before: a write that ends meanwhile is then known as later
        clock_mhz, view.reasons = gpu.clock_mhz(), gpu.reasons()
        view.clock_mhz = clock_mhz
        self.states.append(GpuState(view.uuid, at_ns, clock_mhz, reason_names(view.reasons)))
