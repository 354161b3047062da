"""Reads the GPUs in a thread of its own, so that a driver call that hangs delays nobody."""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from perseusd.errors import GpuError
from perseusd.gpus.base import ClockReason, Gpu

log = logging.getLogger(__name__)

STATE_INTERVAL_S = 0.25
"""How often clock, power and reasons are read: for people, who read no faster."""

KEPT_READINGS = 100_000


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


@dataclass
class Sampler:
    """`readings` is filled by the thread and drained by the loop: (uuid, time_ns, joules)."""

    gpus: Sequence[Gpu]
    interval_s: float
    views: dict[str, GpuView] = field(default_factory=dict)
    readings: collections.deque[tuple[str, int, float]] = field(
        default_factory=lambda: collections.deque(maxlen=KEPT_READINGS)
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
                view.power_w, view.clock_mhz = gpu.power_w(), gpu.clock_mhz()
                view.reasons = gpu.reasons()
        except GpuError as error:
            if view.error is None:
                log.warning("cannot read GPU %s: %s", view.uuid, error)
            view.error = str(error)
            return
        view.energy_j, view.read_s, view.error = joules, time.monotonic(), None
        self.readings.append((view.uuid, stamp, joules))
