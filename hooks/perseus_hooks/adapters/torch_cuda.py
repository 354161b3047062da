"""PyTorch's CUDA events as times of the device: what `device_times` needs of them.

An event is recorded on the stream that the calling thread works on and asked about with `query()`:
nothing here ever synchronises.

CUDA graphs: where one is being captured on this stream no event is recorded, since the graph would
keep it. And a query from any thread ends a capture elsewhere in the process with an error, unless
the querying thread has said that it takes no part in it (CUDA Driver API,
cuThreadExchangeStreamCaptureMode; PyTorch's own watchdog met this: pull requests 104555, 148594).
The driver's call makes no context on another GPU, where the runtime's may.

Several GPUs: a process that computes on `cuda:3` without having selected it has GPU 0 selected. An
event there would be of nothing, and would make a context on a GPU that may be another job's. So the
driver is asked where contexts are, and the only one that has one is the one that computes.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

from perseus_hooks.log import Once

MOST_KEPT = 1024  # events for reuse
DRIVER = "libcuda.so.1"
_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED


def cuda_in_use() -> CudaDevices | None:
    """The devices, where this process has PyTorch's CUDA running. Imports nothing."""
    cuda = sys.modules.get("torch.cuda")
    is_initialized = getattr(cuda, "is_initialized", None)  # another thread may be importing it
    return CudaDevices(cuda) if is_initialized is not None and is_initialized() else None


class CudaDevices:
    """All CUDA devices of this process. cuda: the module torch.cuda."""

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        self._with_context: set[int] = set()
        self._once = Once()

    def current(self) -> int | None:
        """The selected one; where nothing computes there, the only one on which something does."""
        index: int = self._cuda.current_device()
        if index in self._with_context:
            return index
        if has_context(index):
            self._with_context.add(index)
            return index
        return self._only()

    def _only(self) -> int | None:
        found = [index for index in range(self._cuda.device_count()) if has_context(index)]
        if len(found) > 1:
            self._once.warn("which", _WHICH, found)
        return found[0] if len(found) == 1 else None

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
        if self._aside is None:
            self._aside = self._cuda.Stream()  # of PyTorch's pool: waits for no other stream
        self._cuda.set_stream(self._aside)  # of this thread

    def record(self) -> Any:
        if self._cuda.current_device() == self._index:
            return self._recorded()
        with self._cuda.device(self._index):
            return self._recorded()

    def mark(self) -> Any:
        """On the stream that `attend` has made this thread's. The pool lends each several times, so
        the training may be capturing on it.
        """
        return self._recorded()

    def _recorded(self) -> Any:
        if self._cuda.is_current_stream_capturing():
            return None
        event = self._event()
        event.record()
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


_WHICH = (
    "perseusd does not hear of this process: it computes on the CUDA devices %s and has selected "
    "another one: call torch.cuda.set_device in each thread"
)


def has_context(index: int) -> bool:
    """Whether this process has a context on this device, or that cannot be told. Makes none."""
    flags, active = ctypes.c_uint(), ctypes.c_int()
    try:
        ask = ctypes.CDLL(DRIVER).cuDevicePrimaryCtxGetState
        code = ask(ctypes.c_int(index), ctypes.byref(flags), ctypes.byref(active))
    except (OSError, AttributeError):
        return True
    return code != 0 or active.value != 0


def _stay_out_of_captures() -> None:
    """Raises OSError where the driver does not let this thread."""
    mode = ctypes.c_int(_RELAXED)
    code = ctypes.CDLL(DRIVER).cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))
    if code != 0:
        raise OSError(f"cuThreadExchangeStreamCaptureMode failed with CUDA error {code}")
