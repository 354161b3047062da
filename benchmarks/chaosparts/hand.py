"""What does faults to a rig, and tells the observer what they mean.

Each fault is a function of the hand and its event; it begins the fault and returns how it ends.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nvml_faults import Fault, set_faults

from chaosparts.observer import Cause, Excuse, Observer, gpus
from chaosparts.rig import GPUS, SILENCE_S, STAGES, Rig, lives, send

DEATH_S = 1.0
HANG_S = 2.0
CLOCK_DEATH_S = 2.0
"""The daemon has to see that its clock process is gone and to start another, which restores."""

ITERATION_S = 0.4
"""Of the job, about."""

RETRIED_S = 6.0
"""The clock process tries a reset that the driver refused again after 5 s at the latest."""

ENDED_S = 20.0
"""A daemon that was told to end, and goes on, has ended by then."""

ALL = gpus(range(GPUS))
JOB = gpus(range(STAGES))

LOOKED_FOR_S = 8.0
"""A GPU that could not be opened is begun anew every 3 s, and taken 3 s later."""

End = Callable[[], None]


@dataclass(frozen=True)
class Event:
    """A fault from `at_s` after a schedule's begin on, for `lasts_s`.

    picks: its choices, each in [0, 1).
    """

    kind: str
    at_s: float
    lasts_s: float
    picks: tuple[float, float, float]

    def choice(self, which: int, among: tuple[Any, ...]) -> Any:
        return among[int(self.picks[which] * len(among))]


class Hand:
    def __init__(self, rig: Rig, observer: Observer) -> None:
        self.rig = rig
        self.observer = observer
        self.clock: int | None = None  # the last clock process known
        self.planner: int | None = None
        self.killed: set[int] = set()
        self.stopped = Counter[int]()  # how many faults have stopped it, and are not over
        self.daemon_to_die = False
        self.starting_since_s: float | None = None  # wanted, while the last one still ends
        self.moved_s = time.monotonic()  # when training last moved, or was not meant to
        self._iterations = 0
        self._of_daemon: list[Cause] = []  # of this one: the next one may lower clocks
        self._of_job: list[Cause] = []
        self._faults: list[Fault] = []
        self._faulty_s = 0.0  # until when the driver refused something
        self._resets_fail_s = 0.0
        self._no_clock: Excuse | None = None
        self._children_s = 0.0
        self._clockless_s: float | None = None

    # -- what every fault may ask --------------------------------------------------------------

    def kill(self, pid: int | None, number: signal.Signals = signal.SIGKILL) -> bool:
        if pid is not None:
            self.killed.add(pid)
            self.stopped.pop(pid, None)
        return send(pid, number)

    def stop(self, pid: int | None) -> End:
        """SIGSTOP, until the end of the last fault that stopped it."""
        if not lives(pid) or pid is None:
            return nothing
        send(pid, signal.SIGSTOP)
        self.stopped[pid] += 1

        def go_on() -> None:
            if self.stopped[pid] > 1:
                self.stopped[pid] -= 1
            else:
                self.stopped.pop(pid, None)
                send(pid, signal.SIGCONT)

        return go_on

    def put(self, *faults: Fault) -> End:
        """These faults of the driver besides those that are there."""
        self._faults += faults
        set_faults(self.rig.node.path, *self._faults)

        def clear() -> None:
            self._faulty_s = time.monotonic()
            for fault in faults:
                self._faults.remove(fault)
            set_faults(self.rig.node.path, *self._faults)

        return clear

    def no_resets(self, what: str, which: frozenset[int], after_s: float) -> End:
        """These GPUs cannot be put back until the end, and some time after it."""
        excuse = self.observer.excuse(Excuse(what, which, time.monotonic(), after_s))

        def over() -> None:
            excuse.until_s = self._resets_fail_s = time.monotonic()

        return over

    @property
    def daemon_pid(self) -> int | None:
        return (
            self.rig.daemon.pid if self.rig.daemon is not None and self.rig.daemon_lives else None
        )

    def end_daemon(self, what: str, number: signal.Signals, grace_s: float = DEATH_S) -> End:
        """Kill or terminate it; in the end it is started again."""
        pid = self.daemon_pid
        if pid is None:
            return self.start_daemon
        self.daemon_to_die, self.starting_since_s = True, None
        cause = self.of_daemon(Cause(what, ALL, time.monotonic(), grace_s))
        self.kill(pid, number)

        def again() -> None:
            cause.until_s = cause.until_s or time.monotonic()
            self.start_daemon()

        return again

    def of_daemon(self, cause: Cause) -> Cause:
        """A cause of this daemon's, which lasts no longer than until the next one is started."""
        self._of_daemon.append(cause)
        return self.observer.cause(cause)

    def start_daemon(self) -> None:
        """Where there is none: as systemd would, also one that is ending slowly is waited for.

        By later ticks, since other faults are to begin and end in time meanwhile.
        """
        daemon = self.rig.daemon
        if daemon is not None and daemon.poll() is None:
            if not self.daemon_to_die:
                return
            send(daemon.pid, signal.SIGCONT)  # stopped, it would never end
        self.starting_since_s = self.starting_since_s or time.monotonic()
        self._start_daemon()

    def _start_daemon(self) -> None:
        """Once the last one has ended."""
        daemon, since_s = self.rig.daemon, self.starting_since_s
        if since_s is None:
            return
        if daemon is not None and daemon.poll() is None:
            if time.monotonic() > since_s + ENDED_S + self.observer.lag_s(since_s):
                raise TimeoutError(f"perseusd was told to end, and has not for {ENDED_S:.0f} s")
            return
        self.starting_since_s, self.daemon_to_die = None, False
        _end_all(self._of_daemon)
        self.rig.start_daemon()

    def end_ranks(self, what: str, which: tuple[int, ...], number: signal.Signals) -> End:
        """Kill these; in the end the job is started again."""
        cause = self._cause_of_job(Cause(what, JOB, time.monotonic(), DEATH_S))
        for rank in which:
            if rank < len(self.rig.ranks):
                self.kill(self.rig.ranks[rank], number)

        def again() -> None:
            cause.until_s = cause.until_s or time.monotonic()
            _end_all(self._of_job)
            self.rig.start_job()

        return again

    def _cause_of_job(self, cause: Cause) -> Cause:
        """Likewise: the ranks of the next job have leases of their own."""
        self._of_job.append(cause)
        return self.observer.cause(cause)

    def stop_ranks(self, what: str, which: tuple[int, ...]) -> End:
        """Stopped, these ranks are silent."""
        grace_s = max(SILENCE_S, 2 * ITERATION_S) + DEATH_S
        cause = Cause(what, JOB, time.monotonic(), grace_s, lasting=False)
        self._cause_of_job(cause)
        ends = [self.stop(self.rig.ranks[rank]) for rank in which if rank < len(self.rig.ranks)]

        def go_on() -> None:
            self.moved_s = time.monotonic()
            cause.until_s = cause.until_s or self.moved_s
            for end in ends:
                end()

        return go_on

    # -- watching ------------------------------------------------------------------------------

    def tick(self) -> None:
        """Often: who has died that should live, and whether training moves."""
        now_s = time.monotonic()
        self._start_daemon()
        self._watch_daemon()
        if now_s >= self._children_s:
            self._children_s = now_s + 0.1
            self._watch_children(now_s)
        self._watch_clock(now_s)
        self._watch_training(now_s)

    def _watch_daemon(self) -> None:
        daemon = self.rig.daemon
        if daemon is None or daemon.poll() is None or self.daemon_to_die:
            return
        starting = not self.rig.ready_s
        if not (starting and self._driver_was_faulty()):
            words = " | ".join(list(self.rig.log)[-6:])
            self.observer.violation(
                f"perseusd ended by itself, status {daemon.returncode}: {words}"
            )
        self.daemon_to_die = True  # said once
        cause = Cause("the daemon's own end", ALL, time.monotonic(), DEATH_S)
        cause.until_s = cause.since_s
        self.observer.cause(cause)

    def _driver_was_faulty(self) -> bool:
        return bool(self._faults) or time.monotonic() < self._faulty_s + 5

    def _watch_children(self, now_s: float) -> None:
        found = self.rig.children()
        for name in ("clock", "planner"):
            before, now = getattr(self, name), found.get(name)
            if now is not None and now != before:
                setattr(self, name, now)
                by_us = before is None or before in self.killed or lives(before)
                if not by_us and self._is_same_daemon() and not self._driver_was_faulty():
                    self.observer.violation(f"the {name} process {before} ended by itself")
        clockless = self.rig.ready_s and self.daemon_pid is not None and "clock" not in found
        if not clockless or self._faults or self.stopped or self.daemon_to_die:
            self._clockless_s = None
        else:
            self._clockless_s = self._clockless_s or now_s
            if now_s > self._clockless_s + 8 + self.observer.lag_s(self._clockless_s):
                self.observer.violation("perseusd has had no clock process for 8 s")
                self._clockless_s = now_s

    def _is_same_daemon(self) -> bool:
        """Whether this daemon started the clock process before, too: it is ready since long."""
        return bool(self.rig.ready_s) and time.monotonic() > self.rig.ready_s + 1

    def _watch_clock(self, now_s: float) -> None:
        """While no clock process is there to put clocks back, nobody is late."""
        there = lives(self.clock)
        gone = not there and (self.clock in self.killed or now_s < self._resets_fail_s + RETRIED_S)
        if gone and self._no_clock is None:
            what = "no clock process"
            self._no_clock = self.observer.excuse(Excuse(what, ALL, now_s - 0.1, 1.5))
        elif there and self._no_clock is not None:
            self._no_clock.until_s = now_s
            self._no_clock = None

    def _watch_training(self, now_s: float) -> None:
        done = self.rig.iterations()
        paused = not all(lives(pid) for pid in self.rig.ranks) or not self.rig.ranks
        paused = paused or not self.stopped.keys().isdisjoint(self.rig.ranks)
        if paused or done != self._iterations:
            self.moved_s, self._iterations = now_s, done


def _end_all(causes: list[Cause]) -> None:
    """Those that have not ended end now, and are nobody's any more."""
    for cause in causes:
        cause.until_s = cause.until_s or time.monotonic()
    causes.clear()


def nothing() -> None:
    """How a fault ends that is over already."""


def all_of(*ends: End) -> End:
    """One after the other."""

    def end() -> None:
        for each in ends:
            each()

    return end
