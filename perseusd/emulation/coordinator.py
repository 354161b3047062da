"""What ends every iteration of an emulated job: the all-reduce of all ranks, and of all replicas.

It waits for every rank's report, and for a straggling replica where there is one; then it calls the
next iteration. A rank that has died is waited for for ever, as by the others.
"""

from __future__ import annotations

import json
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from perseusd.emulation.worker import MESSAGE_BYTES

SYNCHRONISATION_NS = 5_000_000
_FIRST_START_NS = 50_000_000

Report = dict[str, Any]


@dataclass(frozen=True)
class Straggler:
    """Another replica that takes `factor` × this job's full-clock iteration.

    It straggles from iteration `start` on until `end`, exclusive.
    """

    factor: float
    start: int
    end: int

    def active(self, iteration: int) -> bool:
        return self.start <= iteration < self.end


@dataclass(frozen=True)
class Ended:
    """An iteration that is over. reports: by rank, as the workers sent them."""

    iteration: int
    start_ns: int
    end_ns: int
    reports: Sequence[Report]
    straggling: bool


@dataclass(frozen=True)
class Observer:
    """What the job does with what happens. Called in the coordinator's thread: be quick."""

    iteration_ended: Callable[[Ended], None]
    straggler: Callable[[bool], None] = field(default=lambda _: None)


class Coordinator:
    """Runs iterations in a thread of its own, from start() to stop().

    controls: a socket to each rank, which stay the caller's to close.
    full_clock_ns: how long an iteration takes at full clock; a straggler's is a multiple of it.
    """

    def __init__(
        self,
        controls: Sequence[socket.socket],
        full_clock_ns: int,
        straggler: Straggler | None,
        observer: Observer,
    ) -> None:
        self._controls = controls
        self._full_clock_ns = full_clock_ns
        self._straggler = straggler
        self._observer = observer
        self._wake, self._waker = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="emulated-job", daemon=True)
        self.lost: list[int] = []  # ranks that have died
        self.error: Exception | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        self._waker.close()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self._wake.close()

    def _run(self) -> None:
        try:
            start_ns = time.monotonic_ns() + _FIRST_START_NS
            iteration = 0
            while True:
                ended = self._iterate(iteration, start_ns)
                self._observer.iteration_ended(ended)
                iteration, start_ns = iteration + 1, ended.end_ns
        except _Stopped:
            pass
        except Exception as error:  # noqa: BLE001 - kept for whoever watches this thread
            self.error = error

    def _iterate(self, iteration: int, start_ns: int) -> Ended:
        straggler = self._straggler
        straggling = straggler is not None and straggler.active(iteration)
        if straggler is not None and iteration in (straggler.start, straggler.end):
            self._observer.straggler(straggling)
        self._call(iteration, start_ns)
        reports = self._reports()
        end_ns = max(int(report["end_ns"]) for report in reports)
        if straggler is not None and straggling:
            end_ns = max(end_ns, start_ns + round(straggler.factor * self._full_clock_ns))
        end_ns += SYNCHRONISATION_NS
        self._sleep_until(end_ns)
        return Ended(iteration, start_ns, end_ns, reports, straggling)

    def _call(self, iteration: int, start_ns: int) -> None:
        message = json.dumps({"iteration": iteration, "start_ns": start_ns}).encode()
        for rank, control in enumerate(self._controls):
            try:
                control.send(message)
            except OSError:
                self._lose(rank)

    def _reports(self) -> list[Report]:
        """Every rank's report of this iteration, by rank; waits for all, however long."""
        found: dict[int, Report] = {}
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake, selectors.EVENT_READ)
            for rank, control in enumerate(self._controls):
                if rank not in self.lost:
                    selector.register(control, selectors.EVENT_READ, rank)
            while len(found) < len(self._controls):
                for key, _ in selector.select():
                    if key.data is None:
                        raise _Stopped
                    report = _received(self._controls[key.data])
                    if report is not None:
                        found[key.data] = report
                    else:
                        selector.unregister(key.fileobj)
                        self._lose(key.data)
        return [found[rank] for rank in sorted(found)]

    def _lose(self, rank: int) -> None:
        if rank not in self.lost:
            self.lost.append(rank)

    def _sleep_until(self, stamp_ns: int) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake, selectors.EVENT_READ)
            while (left := stamp_ns - time.monotonic_ns()) > 0:
                if selector.select(left / 1e9):
                    raise _Stopped


class _Stopped(Exception):  # noqa: N818 - no error: how the thread is meant to end
    """stop() was called."""


def _received(control: socket.socket) -> Report | None:
    """A report; None where the worker is gone."""
    try:
        message = control.recv(MESSAGE_BYTES)
    except OSError:
        return None
    report: Report | None = json.loads(message) if message else None
    return report
