"""One thread per GPU makes its driver calls, so that a call that hangs hangs that GPU alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import NamedTuple

from perseusd.clock.intent import IntentError, IntentFile
from perseusd.clock.protocol import UNLOCKED, ResultCode
from perseusd.gpus.base import Gpu, GpuLostError, GpuNotSupportedError, GpuPermissionError

_CODES: tuple[tuple[type[Exception], ResultCode], ...] = (
    (IntentError, ResultCode.INTENT_NOT_WRITTEN),
    (GpuPermissionError, ResultCode.NO_PERMISSION),
    (GpuNotSupportedError, ResultCode.NOT_SUPPORTED),
    (GpuLostError, ResultCode.LOST),
)


class Outcome(NamedTuple):
    """A driver call that has ended. `error`: what it said, empty if all went well."""

    gpu_index: int
    code: ResultCode
    start_ns: int
    end_ns: int
    observed_mhz: int
    error: str


class GpuWriter:
    """Carries out one GPU's writes, one after another, on a thread of its own."""

    def __init__(
        self,
        gpu: Gpu,
        intent: IntentFile,
        done: Callable[[Outcome], None],
        standing_mhz: int | None = None,
    ) -> None:
        """done: called on the thread after each write. standing_mhz: what a reset leads to."""
        self._gpu = gpu
        self._standing_mhz = standing_mhz
        self._intent = intent
        self._done = done
        self._clocks: SimpleQueue[int | None] = SimpleQueue()
        name = f"gpu-{gpu.info.index}"
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def write(self, clock_mhz: int) -> None:
        """Start a lock, or a reset for UNLOCKED."""
        self._clocks.put(clock_mhz)

    def end(self) -> None:
        """No more writes; the thread ends after those that were started."""
        self._clocks.put(None)

    def _run(self) -> None:
        while (clock_mhz := self._clocks.get()) is not None:
            self._done(self._write(clock_mhz))

    def _write(self, clock_mhz: int) -> Outcome:
        start_ns = time.monotonic_ns()
        code, error = ResultCode.OK, ""
        try:
            if clock_mhz == UNLOCKED:
                start_ns = time.monotonic_ns()
                self._put_back()
            else:
                self._intent.add(self._gpu.info.uuid)
                start_ns = time.monotonic_ns()
                self._gpu.lock_clock(clock_mhz)
        except Exception as failure:  # noqa: BLE001 - the thread outlives whatever a driver does
            code, error = _code_of(failure), f"{failure}" or repr(failure)
        end_ns = time.monotonic_ns()
        return Outcome(self._gpu.info.index, code, start_ns, end_ns, self._observe(), error)

    def _put_back(self) -> None:
        if self._standing_mhz is None:
            self._gpu.reset_clock()
        else:
            self._gpu.lock_clock(self._standing_mhz)

    def _observe(self) -> int:
        try:
            return self._gpu.clock_mhz()
        except Exception:  # noqa: BLE001 - the thread outlives whatever a driver does
            return 0


def _code_of(failure: Exception) -> ResultCode:
    for kind, code in _CODES:
        if isinstance(failure, kind):
            return code
    return ResultCode.FAILED
