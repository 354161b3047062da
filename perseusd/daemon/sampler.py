"""Reads the GPUs in threads of its own, so that a driver call that hangs delays nobody.

One thread reads all of them, which costs an eighth of what one thread for each would. Where a call
takes longer than usual, its thread stays with that GPU, and another one goes on with the others;
once the GPU has answered quickly for a while, it is read with them again.
"""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from perseusd.gpus.base import ClockReason, Gpu, GpuLostError

log = logging.getLogger(__name__)

STATE_INTERVAL_S = 0.25
"""How often clock, power and reasons are read: for people, who read no faster, and as a straggler's
cause, which lasts longer."""

SLOW_S = 0.25
"""A driver call that takes longer holds up no other GPU."""

STUCK_S = 2.0
"""A driver call that takes longer is taken for one that hangs."""

STALE_S = 5.0
"""A GPU whose last reading is older is not known well enough to be planned for."""

CALM_READS = 500
"""A GPU that was slow is read with the others again after so many quick readings."""

KEPT_READINGS = 100_000
KEPT_STATES = 4096

_UNEXPLAINED = ClockReason.IDLE | ClockReason.APPLICATIONS_CLOCKS
"""Bits that name nothing in the GPU which keeps its clock down."""


class GpuState(NamedTuple):
    """A GPU's clock, and why it was not higher, at one moment. reasons: see `reason_names`.

    limited: power, heat or another limit of the GPU's own kept it down, by any bit of the driver's.
    """

    uuid: str
    time_ns: int
    clock_mhz: int
    reasons: frozenset[str]
    limited: bool = False


@cache
def reason_names(reasons: ClockReason) -> frozenset[str]:
    """NVML's names in lower case, such as `sw_thermal`; bits that have no name are left out."""
    return frozenset(str(r.name).lower() for r in ClockReason if r and r in reasons)


@dataclass
class GpuView:
    """The latest of a GPU.

    calling_s: when the driver call began that is under way, 0 if none is. read_s: when the last
    one ended well. error: why it could not be read. lost: and a reset of the GPU is needed.
    """

    uuid: str
    energy_j: float | None = None
    power_w: float | None = None
    clock_mhz: int | None = None
    reasons: ClockReason = ClockReason.NONE
    calling_s: float = 0.0
    read_s: float = field(default_factory=time.monotonic)
    error: str | None = None
    lost: bool = False
    readings: int = 0
    """Of the energy counter, that worked."""
    unmoved: tuple[str, int, float] | None = None
    """The newest reading, where the counter was as before: it tells something once it moves."""
    failed: int = 0
    """Readings that did not."""

    def stuck_s(self, now_s: float) -> float:
        """For how long a driver call has hung; 0 where none does."""
        taken_s = now_s - self.calling_s if self.calling_s else 0.0
        return taken_s if taken_s > STUCK_S else 0.0

    def trouble(self, now_s: float) -> str | None:
        """Why no clock of this GPU can be planned now, in words that do not change with time."""
        if self.stuck_s(now_s):
            return f"GPU {self.uuid} is stuck: a driver call that reads it does not return"
        if self.lost:
            return f"GPU {self.uuid} is lost: {self.error}"
        if now_s - self.read_s > STALE_S:
            return f"GPU {self.uuid} cannot be read: {self.error or 'its thread does not run'}"
        return None


class _Reader(threading.Thread):
    """Reads its GPUs one after another until it has none."""

    def __init__(self, sampler: Sampler, gpus: Iterable[Gpu]) -> None:
        super().__init__(name="sampler", daemon=True)
        self._sampler = sampler
        self._stopping = sampler.stopping
        self.gpus = list(gpus)
        self.calls = 0  # since this thread was left with its GPU
        self.current: GpuView | None = None

    def run(self) -> None:
        state_due = 0.0
        while self.gpus and not self._stopping.wait(self._sampler.interval_s):
            now_s = time.monotonic()
            whole = now_s >= state_due
            if whole:
                state_due = now_s + STATE_INTERVAL_S
            for gpu in tuple(self.gpus):
                if gpu in self.gpus and not self._stopping.is_set():  # not taken away meanwhile
                    self._read(gpu, whole)

    def _read(self, gpu: Gpu, whole: bool) -> None:
        view = self._sampler.views[gpu.info.uuid]
        view.calling_s, self.current = time.monotonic(), view
        try:
            self._sampler.read(gpu, whole)
        finally:
            quick = time.monotonic() - view.calling_s < SLOW_S
            self.calls = self.calls + 1 if quick else 0
            view.calling_s, self.current = 0.0, None


@dataclass
class Sampler:
    """`readings` and `states` are filled by threads and drained by the loop.

    readings: (uuid, time_ns, joules), read every `interval_s`: those at which a counter was seen
    to have moved, and the last one before each; states: one every STATE_INTERVAL_S.
    """

    gpus: list[Gpu]
    interval_s: float
    views: dict[str, GpuView] = field(default_factory=dict)
    readings: collections.deque[tuple[str, int, float]] = field(
        default_factory=lambda: collections.deque(maxlen=KEPT_READINGS)
    )
    states: collections.deque[GpuState] = field(
        default_factory=lambda: collections.deque(maxlen=KEPT_STATES)
    )
    stopping: threading.Event = field(default_factory=threading.Event)
    _readers: list[_Reader] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.views = {gpu.info.uuid: GpuView(gpu.info.uuid) for gpu in self.gpus}

    def start(self) -> None:
        self.stopping = threading.Event()  # a thread that hangs keeps the one it knows
        self._readers.clear()
        self._begin(self.gpus)

    def add(self, gpu: Gpu) -> None:
        """One that was not there before, or that is there again after the driver was let go of."""
        uuid = gpu.info.uuid
        self.gpus = [known for known in self.gpus if known.info.uuid != uuid] + [gpu]
        self.gpus.sort(key=lambda known: known.info.index)
        self.views[uuid] = GpuView(uuid)
        if self.reading:
            self._begin([gpu])

    def look_after(self) -> None:
        """Part a GPU that is slow from the others, or join it to them again; to be called often."""
        now_s = time.monotonic()
        self._readers = [reader for reader in self._readers if reader.is_alive()]
        for reader in tuple(self._readers):
            view = reader.current
            if view is not None and len(reader.gpus) > 1 and now_s - view.calling_s > SLOW_S:
                slow = [gpu for gpu in reader.gpus if gpu.info.uuid == view.uuid]
                others = [gpu for gpu in reader.gpus if gpu not in slow]
                reader.gpus, reader.calls = slow, 0
                self._begin(others)
        self._join_calm()

    @property
    def reading(self) -> bool:
        """Whether a thread may be inside the driver now."""
        return any(reader.is_alive() for reader in self._readers)

    def stop(self, patience_s: float = 1.0) -> bool:
        """Read no more; whether no thread is inside the driver any more, after some patience."""
        self.stopping.set()
        deadline_s = time.monotonic() + patience_s
        for reader in self._readers:
            reader.join(max(0.0, deadline_s - time.monotonic()))  # a hung call keeps it: a daemon
        return not self.reading

    def read(self, gpu: Gpu, whole: bool) -> None:
        """One reading, on the caller's thread; what the driver says instead goes to the view."""
        view = self.views[gpu.info.uuid]
        try:
            joules = gpu.energy_j()
            stamp = time.monotonic_ns()
            if whole:
                view.power_w = gpu.power_w()
                self._read_state(gpu, view)
        except Exception as error:  # noqa: BLE001 - the thread outlives whatever a driver does
            if view.error is None:
                log.warning("cannot read GPU %s: %s", view.uuid, error)
            view.error, view.lost = str(error) or repr(error), isinstance(error, GpuLostError)
            view.failed += 1
            return
        if view.error is not None:
            log.info("GPU %s can be read again", view.uuid)
        reading = view.uuid, stamp, joules
        if joules == view.energy_j:
            view.unmoved = reading
        else:
            if view.unmoved is not None:
                self.readings.append(view.unmoved)
                view.unmoved = None
            self.readings.append(reading)
        view.energy_j, view.read_s = joules, time.monotonic()
        view.error, view.lost = None, False
        view.readings += 1

    def _read_state(self, gpu: Gpu, view: GpuView) -> None:
        at_ns = time.monotonic_ns()  # before: a write that ends meanwhile is then known as later
        clock_mhz, view.reasons = gpu.clock_mhz(), gpu.reasons()
        view.clock_mhz = clock_mhz
        limited = bool(view.reasons & ~_UNEXPLAINED)
        names = reason_names(view.reasons)
        self.states.append(GpuState(view.uuid, at_ns, clock_mhz, names, limited))

    def _begin(self, gpus: Iterable[Gpu]) -> None:
        reader = _Reader(self, gpus)
        self._readers.append(reader)
        reader.start()

    def _join_calm(self) -> None:
        calm = [reader for reader in self._readers if reader.calls >= CALM_READS]
        if len(calm) < 2:
            return
        home = max(calm, key=lambda reader: len(reader.gpus))
        for reader in calm:
            if reader is not home:
                home.gpus += reader.gpus
                reader.gpus = []
