"""Spans stamped by the device that computes: the launching thread is never made to wait for it.

A launch returns at once, so the host's clock says nothing of how long a kernel ran. Here each start
and end puts an event into the device's stream, which costs its launch; a thread of ours asks later
whether it has passed, and then sends what it is of, with the time at which it passed.

Device times are distances between two events, in 32-bit floats of milliseconds (CUDA Runtime API,
cudaEventElapsedTime). An event of which we know the host's time too, the anchor, makes them stamps;
a new one is taken often enough for the distance to be told within microseconds, and for the two
clocks not to drift apart.
"""

from __future__ import annotations

import ctypes
import queue
import threading
import time
from collections import deque
from collections.abc import Hashable
from typing import Any, NamedTuple, Protocol

from perseus_hooks.events import Hello
from perseus_hooks.log import Once, warn

POLL_S = 0.004  # between looks at what is on its way: what an event may come late by
MOST_PENDING = 8192  # events on their way; a device that has stopped must not fill the memory
ANCHOR_NS = 20_000_000_000  # after so long a new anchor: floats of 20 s are told within 2 µs
ANCHOR_TRIES = 4  # the one that is known most closely counts …
ANCHOR_POLL_S = (50e-6, 2e-3)  # … by looks so far apart at first, and at most
ANCHOR_WAIT_NS = 1_000_000_000  # for one try, while other work is before it in the device's queue
ANCHOR_LONG_NS = 20_000_000  # a try that took this long had work before it, and so will the next
ANCHOR_AGAIN_NS = 2_000_000_000  # after no try was answered, while an older anchor is there
CLOSE_S = 0.05  # the longest that closing waits for this thread


class Device(Protocol):
    """One device's events. Methods may raise where the device has failed."""

    def attend(self) -> None:
        """The calling thread is about to mark and to ask, and launches nothing itself."""

    def record(self) -> Any:
        """A new event after all work that the calling thread has launched; None: not now."""

    def mark(self) -> Any:
        """A new event beside that work, which passes as soon as the device can; None: not now."""

    def is_past(self, event: Any) -> bool: ...

    def elapsed_ms(self, first: Any, second: Any) -> float: ...

    def give_back(self, event: Any) -> None:
        """The event may be used again."""


class Devices(Protocol):
    """The devices of this process."""

    def current(self) -> Hashable:
        """The one that the calling thread launches on; None: there is none, or which is unclear."""

    def device(self, key: Hashable) -> Device: ...


class Outlet(Protocol):
    """Where a client's events go: a Channel, a recording, or these times and then one of them."""

    def emit(self, kind: type[Any], time_ns: int, *fields: Any) -> None: ...
    def lose(self) -> None: ...
    def hears(self, time_ns: int) -> bool: ...
    def introduce(self, hello: Hello, time_ns: int, wait_ms: int) -> None: ...
    def close(self, time_ns: int, wait_ms: int | None = None) -> None: ...
    def forget(self) -> None: ...


class _Pending(NamedTuple):
    timeline: _Timeline
    event: Any
    kind: type[Any]
    fields: tuple[Any, ...]


class DeviceTimes:
    """An outlet that sends what it is told to another one, with the device's stamps, in order.

    No method waits for the device, and none raises for its sake: where a device fails, what is on
    its way is lost, which the daemon sees as a gap, and so is all that follows.
    """

    def __init__(self, outlet: Outlet, devices: Devices) -> None:
        self._outlet = outlet
        self._devices = devices
        self._timelines: dict[Hashable, _Timeline] = {}
        self._pending: deque[_Pending] = deque()
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._idle = False
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._stopped = False
        self._attended: _Timeline | None = None
        self._latest_ns = 0
        self._once = Once()

    def emit(self, kind: type[Any], time_ns: int, *fields: Any) -> None:
        if self._stopped:
            return  # that something is missing has been told
        try:
            if not (self._outlet.hears(time_ns) and self._put(kind, fields)):
                self._outlet.lose()
        except Exception as error:  # noqa: BLE001  whatever the framework raises
            self._fail(error)

    def _put(self, kind: type[Any], fields: tuple[Any, ...]) -> bool:
        """Put an event into the stream and see to it that it is asked about; False: not now."""
        timeline = self._timeline()
        if timeline is None or len(self._pending) >= MOST_PENDING:
            return False
        event = timeline.device.record()
        if event is None:
            return False
        self._pending.append(_Pending(timeline, event, kind, fields))
        if self._thread is None:
            self._start()
        elif self._idle:
            self._wake.put(None)
        return True

    def lose(self) -> None:
        self._outlet.lose()

    def hears(self, time_ns: int) -> bool:
        return self._outlet.hears(time_ns)

    def introduce(self, hello: Hello, time_ns: int, wait_ms: int) -> None:
        self._outlet.introduce(hello, time_ns, wait_ms)

    def stop(self) -> None:
        """What has passed already is sent; what is still on its way, and comes later, is given up.

        Takes CLOSE_S at most, and leaves the outlet to whoever uses it next.
        """
        self._stopped = True
        self._wake.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(CLOSE_S)

    def close(self, time_ns: int, wait_ms: int | None = None) -> None:
        self.stop()
        self._outlet.close(time_ns, wait_ms)

    def forget(self) -> None:
        """In a forked child. The parent's events stay as they are: PyTorch's, destroyed in a
        process that may not use the device, end it (c10/cuda/CUDAEvent.h: ~CUDAEvent throws).
        """
        self._stopped = True
        self._thread = None
        self._wake = queue.SimpleQueue()
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))  # even at the interpreter's end
        self._outlet.forget()

    @property
    def stopped(self) -> bool:
        return self._stopped

    def _timeline(self) -> _Timeline | None:
        key = self._devices.current()
        timeline = self._timelines.get(key)
        if timeline is None and key is not None:
            # Two threads may come here at once: an event of a timeline that is not in there would
            # never be told, nor any after it.
            timeline = self._timelines.setdefault(key, _Timeline(self._devices.device(key)))
        return timeline

    def _start(self) -> None:
        if not self._starting.acquire(blocking=False):
            return  # another thread is at it
        try:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="perseus-hooks", daemon=True)
                thread.start()
                self._thread = thread
        finally:
            self._starting.release()

    def _run(self) -> None:
        try:
            while not self._stopped:
                self._look()
                if self._pending:
                    time.sleep(POLL_S)
                else:
                    self._rest()
            self._flush()
        except Exception as error:  # noqa: BLE001  whatever the framework raises
            self._fail(error)

    def _rest(self) -> None:
        self._idle = True
        if not (self._pending or self._stopped):  # else it came before `_idle` was seen
            self._wake.get()
        self._idle = False

    def _look(self) -> None:
        for timeline in list(self._timelines.values()):
            if timeline.is_stale():
                self._attend(timeline)
                timeline.anchor(self)
        self._flush()

    def _flush(self) -> None:
        """Send what has passed."""
        while self._pending:
            timeline, event, kind, fields = self._pending[0]
            self._attend(timeline)
            time_ns = timeline.time_ns(event)
            if time_ns is None:
                return
            self._pending.popleft()
            timeline.device.give_back(event)
            self._latest_ns = max(self._latest_ns, time_ns)  # two streams may pass each other
            self._send(kind, fields)

    def _send(self, kind: type[Any], fields: tuple[Any, ...]) -> None:
        """What goes wrong on the way to the daemon is no fault of the device, and may pass."""
        try:
            self._outlet.emit(kind, self._latest_ns, *fields)
        except Exception as error:  # noqa: BLE001  a hook never raises
            self._once.warn("send", "perseusd does not hear of some computations: %r", error)

    def _attend(self, timeline: _Timeline) -> None:
        if timeline is not self._attended:
            timeline.device.attend()
            self._attended = timeline

    def _fail(self, error: Exception) -> None:
        """Nothing of this device can be believed any more.

        Events on their way stay where they are: to destroy one on a device that failed may raise.
        """
        if self._stopped:
            return
        self._stopped = True
        self._wake.put(None)
        self._outlet.lose()
        warn("perseusd hears no more of this process, its device failed: %r", error)


class _Anchor(NamedTuple):
    """An event, when it passed on the host's clock, and within how much that is known."""

    event: Any
    time_ns: int
    width_ns: int


class _Timeline:
    """A device's events as times of the host's clock."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._anchor: _Anchor | None = None
        self._due_ns = 0  # when a new one is

    def time_ns(self, event: Any) -> int | None:
        """When it passed, in CLOCK_MONOTONIC; None: it has not, or that cannot be told yet."""
        anchor = self._anchor
        if anchor is None or not self.device.is_past(event):
            return None
        return anchor.time_ns + round(self.device.elapsed_ms(anchor.event, event) * 1e6)

    def is_stale(self) -> bool:
        return self._anchor is None or time.monotonic_ns() > self._due_ns

    def anchor(self, owner: DeviceTimes) -> None:
        """Take a new one. All else waits meanwhile: where the device is behind, one try is all."""
        found: list[_Anchor] = []
        slow = False
        while not slow and len(found) < ANCHOR_TRIES:
            begun_ns = time.monotonic_ns()
            anchor = self._taken(owner)
            slow = anchor is None or time.monotonic_ns() - begun_ns > ANCHOR_LONG_NS
            if anchor is not None:
                found.append(anchor)
        if found:
            self._anchor = min(found, key=lambda anchor: anchor.width_ns)
        self._due_ns = time.monotonic_ns() + (ANCHOR_NS if found else ANCHOR_AGAIN_NS)

    def _taken(self, owner: DeviceTimes) -> _Anchor | None:
        """It passed between the last look that did not see it and the first one that did."""
        before_ns = begun_ns = time.monotonic_ns()
        event, pause_s = self.device.mark(), ANCHOR_POLL_S[0]
        if event is None:
            return None
        while not self.device.is_past(event):
            if owner.stopped or before_ns - begun_ns > ANCHOR_WAIT_NS:
                return None
            before_ns = time.monotonic_ns()
            time.sleep(pause_s)
            pause_s = min(1.5 * pause_s, ANCHOR_POLL_S[1])
        after_ns = time.monotonic_ns()
        return _Anchor(event, (before_ns + after_ns) // 2, after_ns - before_ns)
