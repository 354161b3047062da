"""PyTorch's CUDA events as times of the device: what `device_times` needs of them.

An event is recorded on the stream that the calling thread works on and asked about with `query()`:
nothing here ever synchronises.

CUDA graphs: where one is being captured on this stream no event is recorded, since the graph would
keep it. And a query from any thread ends a capture elsewhere in the process with an error, unless
the querying thread has said that it takes no part in it (CUDA Driver API,
cuThreadExchangeStreamCaptureMode; PyTorch's own watchdog met this: pull requests 104555, 148594).
The driver's call makes no context on another GPU, where the runtime's may.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

MOST_KEPT = 1024  # events for reuse
DRIVER = "libcuda.so.1"
_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED


def cuda_in_use() -> CudaDevices | None:
    """The devices, where this process has PyTorch's CUDA running. Imports nothing."""
    cuda = sys.modules.get("torch.cuda")
    if cuda is None or not cuda.is_initialized():
        return None
    return CudaDevices(cuda)


class CudaDevices:
    """All CUDA devices of this process. cuda: the module torch.cuda."""

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda

    def current(self) -> int:
        index: int = self._cuda.current_device()
        return index

    def device(self, key: Any) -> CudaEvents:
        return CudaEvents(self._cuda, key)


class CudaEvents:
    """One device's events, kept for reuse."""

    def __init__(self, cuda: Any, index: int) -> None:
        self._cuda = cuda
        self._index = index
        self._kept: list[Any] = []
        self._aside: Any = None

    def attend(self) -> None:
        self._cuda.set_device(self._index)  # of this thread: no context comes up on GPU 0 by it
        _stay_out_of_captures()

    def record(self) -> Any:
        if self._cuda.is_current_stream_capturing():
            return None
        event = self._event()
        event.record()
        return event

    def mark(self) -> Any:
        if self._aside is None:
            self._aside = self._cuda.Stream()  # of PyTorch's pool: waits for no other stream
        event = self._event()
        event.record(self._aside)
        return event

    def is_past(self, event: Any) -> bool:
        past: bool = event.query()
        return past

    def elapsed_ms(self, first: Any, second: Any) -> float:
        elapsed: float = first.elapsed_time(second)
        return elapsed

    def give_back(self, event: Any) -> None:
        if len(self._kept) < MOST_KEPT:
            self._kept.append(event)

    def _event(self) -> Any:
        try:
            return self._kept.pop()
        except IndexError:
            return self._cuda.Event(enable_timing=True)


def _stay_out_of_captures() -> None:
    """Raises OSError where the driver does not let this thread."""
    mode = ctypes.c_int(_RELAXED)
    code = ctypes.CDLL(DRIVER).cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))
    if code != 0:
        raise OSError(f"cuThreadExchangeStreamCaptureMode failed with CUDA error {code}")
