"""The training process's side of a simulated GPU: what it computes, and when that ends.

The GPU counts as open while the engine holds its byte range of the file locked, a lock that the
kernel releases when the process dies, however it dies.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Sequence
from pathlib import Path

from perseusd.errors import GpuError
from perseusd.gpus.physics import WorkCurve
from perseusd.gpus.simulated_file import MAX_CURVES
from perseusd.gpus.simulated_state import IDLE, WAITING, Activity, SimulatedState, Work

_FLOCK = struct.Struct("@hhqqi4x")  # struct flock: type, whence, start, length, pid


def _flock(kind: int, offset: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, offset, 1, 0)


def is_open(descriptor: int, offset: int) -> bool:
    """Whether any living process has the GPU at `offset` open."""
    answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, offset))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


class SimulatedEngine:
    """Runs one computation after another on one GPU. For one thread of one process."""

    def __init__(self, path: Path, state: SimulatedState) -> None:
        """Open the GPU; GpuError if another process has it open."""
        self._state = state
        self._block = state.block
        self._generation = self._block.generation
        self._kinds = 0
        self._work: Work | None = None
        self._end_ns: int | None = None
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        request = _flock(fcntl.F_WRLCK, self._block.offset)
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, request)
        except OSError:
            os.close(self._descriptor)
            self._descriptor = -1
            raise GpuError(
                f"simulated GPU at {path}: process {self._block.pid} computes on it already; "
                "one process a GPU"
            ) from None
        self._block.pid = os.getpid()
        self._begin(WAITING, time.monotonic_ns())

    def load(self, curves: Sequence[WorkCurve]) -> None:
        """Replace the kinds of computation this GPU can run; `submit` names them by position."""
        clocks = len(self._state.spec.supported_clocks_mhz)
        if len(curves) > MAX_CURVES:
            raise GpuError(f"{len(curves)} kinds of computation on one GPU; {MAX_CURVES} at most")
        for kind, curve in enumerate(curves):
            if len(curve.time_s) != clocks:
                raise GpuError(
                    f"kind {kind} has {len(curve.time_s)} clocks, its GPU supports {clocks}: "
                    "give one time and one energy for each supported clock"
                )
        generation = self._block.generation + 1
        for kind, curve in enumerate(curves):
            self._block.write_curve(generation, kind, curve.time_s + curve.energy_j)
        self._block.generation = self._generation = generation
        self._kinds = len(curves)
        self._begin(WAITING, time.monotonic_ns())

    def submit(self, kind: int, start_ns: int, factor: float = 1.0) -> None:
        """Start a computation at `start_ns`, which may be a few milliseconds ago.

        factor: how many times its curve's time (and energy) it takes. GpuError if the one before
        has not ended by then.
        """
        if not 0 <= kind < self._kinds:
            raise GpuError(f"computation kind {kind}: this engine has {self._kinds} kinds loaded")
        if not factor > 0:
            raise GpuError(f"computation factor {factor}: must be above 0")
        if start_ns < self._current.start_ns or not self._ended_by(start_ns):
            raise GpuError(
                f"a computation submitted for {start_ns} ns, before the one started at "
                f"{self._current.start_ns} ns has ended; wait for its end_ns()"
            )
        self._begin(kind, start_ns, factor)

    def end_ns(self) -> int | None:
        """Exactly when the last submitted computation ended; None while it runs."""
        if self._end_ns is None and self._work is not None:
            now_ns = time.monotonic_ns()
            self._end_ns = self._state.progress(self._current, self._work, now_ns).end_ns
        return self._end_ns

    def predicted_end_ns(self) -> int | None:
        """When it ends if no further clock change comes; None when nothing was submitted."""
        if self._end_ns is not None or self._work is None:
            return self._end_ns
        return self._state.progress(self._current, self._work, None).end_ns

    def clock_generation(self) -> int:
        """Changes whenever a clock change was appended: time to predict anew."""
        return self._block.clocks.count

    def close(self) -> None:
        """Leave the GPU: what still runs stops here, and it draws idle power from now on."""
        if self._descriptor >= 0:
            self._begin(IDLE, max(time.monotonic_ns(), self._current.start_ns))
            os.close(self._descriptor)
            self._descriptor = -1

    def _ended_by(self, time_ns: int) -> bool:
        if self._work is None or (self._end_ns is not None and self._end_ns <= time_ns):
            return True
        end_ns = self._state.progress(self._current, self._work, time_ns).end_ns
        return end_ns is not None and end_ns <= time_ns

    def _begin(self, kind: int, start_ns: int, factor: float = 1.0) -> None:
        before = self._state.activity_at(start_ns)
        energy_j = self._state.energy_after(before, start_ns)
        self._current = Activity(start_ns, energy_j, kind, self._generation, factor)
        self._work = self._state.work_of(self._current)
        self._end_ns = None
        self._block.activities.append(*self._current)
