"""A device that runs what is launched on it later and in order, as a CUDA stream does.

`StandIn` stands for the module torch.cuda: the names and signatures that the hooks use of it,
which `test_torch_cuda` holds against the real ones. Its clock is not the host's, and it tells
distances in 32-bit floats of milliseconds, as the real one does.
"""

from __future__ import annotations

import os
import queue
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Work:
    """A thread that does one thing after the other."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def launch(self, seconds: float) -> None:
        self._queue.put(lambda: time.sleep(seconds))

    def then(self, action: Callable[[], None]) -> None:
        self._queue.put(action)

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """Nothing that is launched from here on runs before the block's end."""
        go = threading.Event()
        self._queue.put(lambda: bool(go.wait()))
        try:
            yield
        finally:
            go.set()

    def finish(self) -> None:
        done = threading.Event()
        self._queue.put(done.set)
        assert done.wait(20)

    def end(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (action := self._queue.get()) is not None:
            action()


class Event:
    """A CUDA event. passed_ns: when it passed, on the host's clock: what is to be found out."""

    def __init__(self, cuda: StandIn, enable_timing: bool) -> None:
        assert enable_timing
        self._cuda = cuda
        self.passed_ns: int | None = None

    def record(self, stream: Work | None = None) -> None:
        self.passed_ns = None
        self._cuda.recorded += 1
        self._cuda.recorded_on.append(self._cuda.current_device())
        alive = weakref.ref(self)  # a stream keeps no event
        (stream or self._cuda.current()).then(lambda: _pass(alive()))

    def query(self) -> bool:
        if self._cuda.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return self.passed_ns is not None

    def elapsed_time(self, end_event: Event) -> float:
        distance_ms = self._cuda.device_ms(end_event) - self._cuda.device_ms(self)
        rounded: float = struct.unpack("f", struct.pack("f", distance_ms))[0]
        return rounded

    def __del__(self) -> None:
        self._cuda.destroyed_in.append(os.getpid())

    def passes(self) -> None:
        self.passed_ns = time.monotonic_ns()
        self._cuda.passed.append(self.passed_ns)


def _pass(event: Event | None) -> None:
    if event is not None:
        event.passes()


class StandIn:
    """The module torch.cuda. drift: how much faster its clock runs than the host's.

    selected, contexts: the device that threads have selected, and those that something runs on.
    """

    def __init__(self, drift: float = 0.0) -> None:
        self.stream = Work()
        self._streams = [self.stream]
        self._drift = drift
        self._origin_ns = time.monotonic_ns()
        self._local = threading.local()
        self.broken = self.capturing = self.capturing_aside = False
        self.selected, self.contexts = 0, {0}
        self.recorded_on: list[int] = []
        self.destroyed_in: list[int] = []  # which processes
        self.recorded = 0
        self.passed: list[int] = []
        self.devices_set: list[tuple[str, int]] = []

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 8

    def current_device(self) -> int:
        index: int = getattr(self._local, "device", self.selected)
        return index

    def set_device(self, device: int) -> None:
        self._local.device = device
        self.devices_set.append((threading.current_thread().name, device))

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        before = self.current_device()
        self._local.device = device
        yield
        self._local.device = before

    def set_stream(self, stream: Work) -> None:
        self._local.stream = stream

    def current(self) -> Work:
        """The calling thread's stream."""
        stream: Work = getattr(self._local, "stream", self.stream)
        return stream

    def is_current_stream_capturing(self) -> bool:
        return self.capturing if self.current() is self.stream else self.capturing_aside

    def Stream(self) -> Work:  # noqa: N802  torch's name
        self._streams.append(Work())
        return self._streams[-1]

    def Event(self, enable_timing: bool = False) -> Event:  # noqa: N802  torch's name
        return Event(self, enable_timing)

    def device_ms(self, event: Event) -> float:
        assert event.passed_ns is not None
        return (event.passed_ns - self._origin_ns) * 1e-6 * (1 + self._drift) + 7e6

    def end(self) -> None:
        for stream in self._streams:
            stream.end()
