"""GPUs whose clock, work and energy live in a mapped file that several processes see.

Per GPU two rings of records (see ring.py): *clock changes*, appended by whoever holds the node's
write lock, and *activities*, appended by the one process that computes on the GPU. An activity is
work (a kind of computation, started then) or waiting, with the energy drawn until its start. So
energy, power and clock at any time are a pure function of the file: no reader waits for a writer,
whether that runs, is stopped or was killed. A computation that has ended is followed by waiting at
blocking power, until the next activity.

After the computing process was killed, its GPU goes on drawing blocking power until it is opened
again: nobody is there to note the time of death.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from mmap import mmap
from pathlib import Path

from perseusd.errors import GpuError
from perseusd.gpus.base import (
    ClockReason,
    GpuInfo,
    GpuLostError,
    GpuPermissionError,
    require_supported,
)
from perseusd.gpus.physics import ClockHistory
from perseusd.gpus.ring import words_of
from perseusd.gpus.simulated_engine import SimulatedEngine, is_open
from perseusd.gpus.simulated_file import GpuBlock, SimulatedSpec, create_file, open_file
from perseusd.gpus.simulated_state import IDLE, UNLIMITED, UNLOCKED, ClockRecord, SimulatedState

__all__ = [
    "SPECS",
    "Fault",
    "SimulatedEngine",
    "SimulatedGpu",
    "SimulatedNode",
    "SimulatedSpec",
    "create_node",
    "open_node",
]

_NS = 1_000_000_000
_HANG_POLL_S = 0.01

# Clocks and blocking powers are those measured on A100 SXM and A40; idle powers are typical ones.
SPECS: dict[str, SimulatedSpec] = {
    "a100-sxm": SimulatedSpec("NVIDIA A100-SXM4-80GB", tuple(range(210, 1411, 15)), 83.64, 55.0),
    "a100-pcie": SimulatedSpec("NVIDIA A100-PCIE", tuple(range(210, 1411, 15)), 83.64, 45.0),
    "a40": SimulatedSpec("NVIDIA A40", tuple(range(210, 1741, 15)), 70.38, 30.0),
}


class Fault(IntEnum):
    """What a simulated GPU's clock writes do instead of working, for tests."""

    NONE = 0
    FAIL = 1
    HANG = 2
    LOST = 3
    NO_PERMISSION = 4


class SimulatedGpu:
    """One simulated GPU, as its driver shows it to any process."""

    def __init__(self, path: Path, spec: SimulatedSpec, block: GpuBlock, index: int) -> None:
        self.spec = spec
        self._info = GpuInfo(
            uuid=f"GPU-sim00000-0000-0000-0000-{index:012d}",
            name=spec.name,
            index=index,
            supported_clocks_mhz=spec.supported_clocks_mhz,
            mig_enabled=False,
            emulated=True,
        )
        self._path = path
        self._block = block
        self._state = SimulatedState(spec, block)
        self._shown_j, self._shown_ns = 0.0, -1
        self._tick_ns = round(spec.counter_tick_s * _NS)
        self._tick_phase_ns = index * 618_033_989 % self._tick_ns  # GPUs do not tick together

    @property
    def info(self) -> GpuInfo:
        return self._info

    def energy_j(self) -> float:
        """The counter as of its last tick; it never goes back for one reader."""
        now_ns = time.monotonic_ns()
        tick_ns = now_ns - (now_ns - self._tick_phase_ns) % self._tick_ns
        if tick_ns != self._shown_ns:
            self._shown_j = max(self._shown_j, self.true_energy_j(tick_ns))
            self._shown_ns = tick_ns
        return self._shown_j

    def true_energy_j(self, at_ns: int | None = None) -> float:
        """Exact energy drawn until `at_ns` (default now; at most some 60 activities back)."""
        at_ns = time.monotonic_ns() if at_ns is None else at_ns
        return self._state.energy_after(self._state.activity_at(at_ns), at_ns)

    def power_w(self) -> float:
        now_ns = time.monotonic_ns()
        work = self._state.running_at(now_ns)
        if work is None:
            return self._state.waiting_power_w(self._state.activity_at(now_ns))
        return work.curve.power_w(self._working_index(now_ns))

    def clock_mhz(self) -> int:
        return self.spec.supported_clocks_mhz[self._working_index(time.monotonic_ns())]

    def reasons(self) -> ClockReason:
        now_ns = time.monotonic_ns()
        limited = ClockReason(self._state.limited_by(now_ns))
        if self._state.running_at(now_ns) is None:
            return limited if self.process_ids() else limited | ClockReason.IDLE
        capped = self._working_index(now_ns) < self._state.clock_index_at(now_ns)
        return limited | ClockReason.SW_POWER_CAP if capped else limited

    def temperature_c(self) -> float:
        """30 °C and a tenth of a degree per watt: a number to show, not a thermal model."""
        return 30.0 + 0.1 * self.power_w()

    def process_ids(self) -> Sequence[int]:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return (self._block.pid,) if is_open(descriptor, self._block.offset) else ()
        finally:
            os.close(descriptor)

    def lock_clock(self, clock_mhz: int) -> None:
        """As the driver does it: one write of the node at a time, effective a little later."""
        require_supported(self._info, clock_mhz)
        self._write_clock(clock_mhz)

    def reset_clock(self) -> None:
        self._write_clock(UNLOCKED)

    def locked_mhz(self) -> int | None:
        """The lock last written, settled or not; None when unlocked. (No real GPU tells this.)"""
        clock_mhz = self._state.newest_clock().clock_mhz
        return None if clock_mhz == UNLOCKED else clock_mhz

    def clock_writes(self) -> int:
        """How many clock writes this GPU has had since it was created."""
        return self._block.writes

    def limit_clock(self, limit_mhz: int | None, reasons: ClockReason = ClockReason.NONE) -> None:
        """From now on power or heat keeps the GPU at this supported clock or below, lock or not.

        reasons: what the GPU says of it. None: no such limit any more. No clock write: nobody
        asked for it.
        """
        if limit_mhz is not None:
            require_supported(self._info, limit_mhz)
        with self._write_lock():
            locked_mhz = self._state.newest_clock().clock_mhz
            record = ClockRecord(time.monotonic_ns(), locked_mhz, limit_mhz or UNLIMITED, reasons)
            self._append(record)

    def clock_history(self, since_ns: int) -> ClockHistory:
        """Its clock changes from the one in force at `since_ns` (the last 63 are known)."""
        return self._state.history(since_ns)

    def set_fault(self, fault: Fault) -> None:
        """Make clock writes fail from now on, in every process; a hanging one ends with NONE."""
        self._block.fault = fault

    def engine(self) -> SimulatedEngine:
        """Open the GPU to compute on it, as its one training process."""
        return SimulatedEngine(self._path, SimulatedState(self.spec, self._block))

    def _working_index(self, now_ns: int) -> int:
        locked = self._state.clock_index_at(now_ns)
        work = self._state.running_at(now_ns)
        if work is None or work.cap_index is None:
            return locked
        return min(locked, work.cap_index)

    def _write_clock(self, clock_mhz: int) -> None:
        self._obey_fault()
        with self._write_lock():
            time.sleep(self.spec.write_latency_s)
            effective_ns = time.monotonic_ns() + round(self.spec.settle_s * _NS)
            limits = self._state.newest_clock()
            self._append(limits._replace(effective_ns=effective_ns, clock_mhz=clock_mhz))
            self._block.writes += 1

    def _append(self, record: ClockRecord) -> None:
        """Under the write lock. Changes take effect in the order in which they were written."""
        effective_ns = max(record.effective_ns, self._state.newest_clock().effective_ns)
        self._block.clocks.append(*record._replace(effective_ns=effective_ns))

    @contextlib.contextmanager
    def _write_lock(self) -> Iterator[None]:
        """The node's driver lock: one write at a time, whichever process or GPU."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)  # and with it the lock

    def _obey_fault(self) -> None:
        name = f"GPU {self._info.index} ({self._info.uuid})"
        while self._block.fault == Fault.HANG:
            time.sleep(_HANG_POLL_S)
        match self._block.fault:
            case Fault.FAIL:
                raise GpuError(f"{name}: the clock write failed (a fault set for a test)")
            case Fault.LOST:
                raise GpuLostError(f"{name} is lost (a fault set for a test)")
            case Fault.NO_PERMISSION:
                raise GpuPermissionError(f"{name}: not permitted (a fault set for a test)")


class SimulatedNode:
    """All simulated GPUs of one file."""

    def __init__(self, path: Path, memory: mmap, spec: SimulatedSpec, count: int) -> None:
        self.path = path
        self.spec = spec
        self._memory = memory
        self._words = words_of(memory)
        self._gpus = tuple(
            SimulatedGpu(path, spec, GpuBlock(memory, self._words, index), index)
            for index in range(count)
        )

    @property
    def gpus(self) -> Sequence[SimulatedGpu]:
        return self._gpus

    @property
    def unavailable(self) -> Mapping[int, str]:
        return {}

    @property
    def hanging(self) -> bool:
        return False

    def await_some(self, _patience_s: float) -> Sequence[SimulatedGpu]:
        """All are there from the beginning."""
        return ()

    def look_again(self) -> Sequence[SimulatedGpu]:
        """All are there from the beginning."""
        return ()

    def close(self) -> None:
        """Of no use afterwards, nor are its GPUs and their engines."""
        self._words.release()
        self._memory.close()


def create_node(path: Path | str, spec: SimulatedSpec, count: int) -> SimulatedNode:
    """Make `count` idle, unlocked GPUs in a new file at `path`, replacing what was there."""
    path = Path(path)
    memory, temporary = create_file(path, spec, count)
    now_ns = time.monotonic_ns()
    with words_of(memory) as words:
        for index in range(count):
            block = GpuBlock(memory, words, index)
            block.clocks.append(*ClockRecord(now_ns, UNLOCKED))
            block.activities.append(now_ns, 0.0, IDLE, 0, 1.0)
    try:
        temporary.rename(path)
    except OSError as error:
        memory.close()
        temporary.unlink()
        raise GpuError(f"simulated GPUs: {path} cannot be created: {error.strerror}") from error
    return SimulatedNode(path, memory, spec, count)


def open_node(path: Path | str) -> SimulatedNode:
    """The GPUs that another process made; GpuError if the file is not one of ours, whole."""
    path = Path(path)
    return SimulatedNode(path, *open_file(path))
