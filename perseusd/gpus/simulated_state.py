"""What a simulated GPU's block of the mapped file says about any moment: pure functions of it."""

from __future__ import annotations

from typing import NamedTuple

from perseusd.errors import GpuError
from perseusd.gpus.physics import (
    ClockChange,
    ClockHistory,
    WorkCurve,
    WorkProgress,
    capped_index,
    run_work,
)
from perseusd.gpus.simulated_file import GpuBlock, SimulatedSpec

UNLOCKED = 0  # in a clock record: no lock, so the highest clock
UNLIMITED = 0  # in a clock record: nothing keeps the GPU below its lock
WAITING = -1  # in an activity: a process has the GPU open and computes nothing
IDLE = -2  # in an activity: no process has it open

_NS = 1_000_000_000
_READ_TRIES = 8


class ClockRecord(NamedTuple):
    """From `effective_ns` on: the lock, and the clock above which power or heat keeps the GPU.

    reasons: the bits (of ClockReason) that say so while the limit is below the lock.
    """

    effective_ns: int
    clock_mhz: int
    limit_mhz: int = UNLIMITED
    reasons: int = 0


class Activity(NamedTuple):
    """What a GPU does from `start_ns` on; `energy_j` was drawn until then.

    kind: which curve of table `generation` it works through, or WAITING or IDLE.
    """

    start_ns: int
    energy_j: float
    kind: int
    generation: int
    factor: float


class Work(NamedTuple):
    """A curve and the highest clock the power limit allows it (None: no limit)."""

    curve: WorkCurve
    cap_index: int | None


class SimulatedState:
    """One GPU's activities, clocks and energy, read without waiting for any writer."""

    def __init__(self, spec: SimulatedSpec, block: GpuBlock) -> None:
        self.spec = spec
        self.block = block
        self._clock_index = {mhz: i for i, mhz in enumerate(spec.supported_clocks_mhz)}
        self._clock_index[UNLOCKED] = len(spec.supported_clocks_mhz) - 1
        self._works: dict[tuple[int, int], Work] = {}

    def activity_at(self, time_ns: int) -> Activity:
        """What it did then; the oldest activity still known for times before that."""
        for _ in range(_READ_TRIES):
            record: tuple[int, float, int, int, float] | None = None
            for record in self.block.activities.newest_first():
                if record[0] <= time_ns:
                    break
            if record is not None:
                return Activity(*record)
        raise GpuError("simulated GPU: its activities cannot be read; its file is damaged")

    def newest_clock(self) -> ClockRecord:
        """The clock change written last, settled or not."""
        for _ in range(_READ_TRIES):
            for record in self.block.clocks.newest_first():
                return ClockRecord(*record)
        raise GpuError("simulated GPU: its clocks cannot be read; its file is damaged")

    def history(self, since_ns: int) -> ClockHistory:
        """Clock changes from the one in force at `since_ns` on, future ones included."""
        changes: list[ClockChange] = []
        for _ in range(_READ_TRIES):
            for values in self.block.clocks.newest_first():
                record = ClockRecord(*values)
                changes.append(ClockChange(record.effective_ns, self._index_of(record)))
                if record.effective_ns <= since_ns:
                    break
            if changes:
                return ClockHistory(tuple(reversed(changes)))
        raise GpuError("simulated GPU: its clocks cannot be read; its file is damaged")

    def work_of(self, activity: Activity) -> Work | None:
        """None when it waits, idles, or its curves have been replaced twice since."""
        if activity.kind < 0 or activity.generation < self.block.generation - 1:
            return None
        key = (activity.generation, activity.kind)
        if key not in self._works:
            self._works[key] = self._read_work(*key)
        return self._works[key]

    def progress(self, activity: Activity, work: Work, until_ns: int | None) -> WorkProgress:
        history = self.history(activity.start_ns)
        start_ns, factor = activity.start_ns, activity.factor
        return run_work(work.curve, history, start_ns, until_ns, factor, work.cap_index)

    def energy_after(self, activity: Activity, time_ns: int) -> float:
        """Energy drawn until `time_ns` if nothing follows this activity before."""
        if time_ns <= activity.start_ns:
            return activity.energy_j
        if activity.kind < 0:
            waited_ns = time_ns - activity.start_ns
            return activity.energy_j + waited_ns / _NS * self.waiting_power_w(activity)
        work = self.work_of(activity)
        if work is None:
            return activity.energy_j
        progress = self.progress(activity, work, time_ns)
        waited_ns = 0 if progress.end_ns is None else max(0, time_ns - progress.end_ns)
        waiting_j = waited_ns / _NS * self.spec.blocking_power_w
        return activity.energy_j + progress.energy_j + waiting_j

    def running_at(self, time_ns: int) -> Work | None:
        """The work going on at that moment, if any."""
        activity = self.activity_at(time_ns)
        work = self.work_of(activity)
        if work is None or self.progress(activity, work, time_ns).end_ns is not None:
            return None
        return work

    def clock_index_at(self, time_ns: int) -> int:
        """The clock in force then, the power cap not counted."""
        return self.history(time_ns).index_at(time_ns)

    def limited_by(self, time_ns: int) -> int:
        """The reason bits of a limit that keeps the GPU below its lock at that moment, or 0."""
        for values in self.block.clocks.newest_first():
            record = ClockRecord(*values)
            if record.effective_ns <= time_ns:
                below = self._index_of(record) < self._clock_index[record.clock_mhz]
                return record.reasons if below else 0
        return 0

    def waiting_power_w(self, activity: Activity) -> float:
        idle = activity.kind == IDLE
        return self.spec.idle_power_w if idle else self.spec.blocking_power_w

    def _read_work(self, generation: int, kind: int) -> Work:
        clocks = len(self.spec.supported_clocks_mhz)
        values = self.block.read_curve(generation, kind, clocks)
        curve = WorkCurve(values[:clocks], values[clocks:])
        limit_w = self.spec.power_limit_w
        return Work(curve, None if limit_w is None else capped_index(curve, limit_w))

    def _index_of(self, record: ClockRecord) -> int:
        try:
            locked = self._clock_index[record.clock_mhz]
            return min(locked, self._clock_index[record.limit_mhz])
        except KeyError as error:
            raise GpuError(
                f"simulated GPU: its file says {error.args[0]} MHz, which it does not support; "
                "the file is damaged, remove it"
            ) from None
