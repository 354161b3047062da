"""When dispatched work is done, found by a thread of ours so that training never waits.

A runtime that dispatches asynchronously gives results back before they are computed. What has to be
known of such a task is when it began and when its results were ready; a device runs its tasks in
the order in which they were dispatched, so a task begins when the one before it on the same device
has ended, its inputs are there, and it has been dispatched, whichever is last.

The thread asks (`is_ready`) rather than waits inside the runtime (`block_until_ready`): a thread
that is inside a library's wait when the interpreter ends can take the whole process down with it.
It asks for the first time shortly before such a task may have ended, by those of late, and then at
intervals of a sixty-fourth of what they took (0.5 to 5 ms): a stamp is never before the results
were ready, and hardly more than that after it. It holds an array until it is ready, and no longer;
no more than MOST_PENDING tasks wait, and what comes above that is dropped.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Callable

from perseus_hooks.log import warn

MOST_PENDING = 4096  # tasks of a process; a runtime lets a host run ahead by a few dozen
STOP_S = 0.1  # the longest that the interpreter's exit waits for the thread
SHORTEST_NS, LONGEST_NS = 500_000, 5_000_000  # between two questions, each of some 10 us
SHARE = 64  # questions in the time that a task takes, or that has been waited
UNASKED = 0.85  # of what the quicker of such tasks take: one that became faster is found out soon
LATE = 16  # how many of such tasks are "of late"

Report = Callable[[int, int, bool], None]
"""Takes a span's start and end, in ns, and whether both are known."""


class Work:
    """One dispatched task.

    after, results: arrays, things with `is_deleted` and `is_ready`. ended_ns: when it had ended, of
    a task whose results were no arrays. key: tasks of one key take about equally long.
    """

    __slots__ = ("after", "dispatched_ns", "ended_ns", "key", "report", "results")

    def __init__(self, report: Report, key: object, dispatched_ns: int) -> None:
        self.report = report
        self.key = key
        self.dispatched_ns = dispatched_ns
        self.after: Sequence[Any] = ()
        self.results: Sequence[Any] = ()
        self.ended_ns: int | None = None


class Lane:
    """The tasks of one device, or of several that work as one, in the order of their dispatch."""

    def __init__(self) -> None:
        self._works: deque[Work] = deque()
        self._free_ns = 0  # when the task before the first of _works had ended
        self._start_ns: int | None = None  # of the first, once it is known
        self._since_ns = 0  # since when the thread has been asking for what it asks for
        self._asked = 0  # how often it has
        self.due_ns = 0  # when to look
        self.idle = True  # whether a task that is put has to wake the thread
        self._known = True  # whether the first one's start and the end before it can be known
        self._took_ns: dict[object, deque[int]] = {}  # by key

    def __len__(self) -> int:
        return len(self._works)

    def add(self, work: Work) -> None:
        self._works.append(work)

    def clear(self) -> None:
        self._works.clear()

    def look(self) -> bool:
        """Report the first task if it has ended, and say so; else look again at `due_ns`."""
        work = self._works[0]
        if self._start_ns is None and not self._begun(work):
            self.due_ns = self._due_ns(work, begun=False)
            return False
        if not self._done(work):
            self.due_ns = self._due_ns(work, begun=True)
            return False
        self._works.popleft()
        self.due_ns = 0
        return True

    def _begun(self, work: Work) -> bool:
        ready = _ready(work.after)
        if ready is False:
            return self._ask_on()
        now_ns = time.monotonic_ns()
        # inputs that were there at the first look came before it, and so did all else
        came_ns = now_ns if self._asked else 0
        if ready is None and work.after:
            self._known = False
        work.after = ()
        self._start_ns = max(work.dispatched_ns, self._free_ns, came_ns)
        self._asked = 0
        return True

    def _done(self, work: Work) -> bool:
        ready = _ready(work.results) if work.ended_ns is None else True
        if ready is False:
            return self._ask_on()
        end_ns = time.monotonic_ns() if work.ended_ns is None else work.ended_ns
        self._close(work, end_ns, found=ready is not None)
        return True

    def _close(self, work: Work, end_ns: int, *, found: bool) -> None:
        start_ns = self._start_ns or work.dispatched_ns
        end_ns = max(end_ns, start_ns)
        with contextlib.suppress(Exception):  # a hook never raises, and the next one has a turn
            work.report(start_ns, end_ns, found and self._known)
        if found and self._known:
            took_ns = self._took_ns.setdefault(work.key, deque(maxlen=LATE))
            took_ns.append(end_ns - start_ns)
        self._free_ns = end_ns
        self._known = found  # the next one's start is as well known as this one's end
        self._start_ns = None
        self._asked = 0

    def _ask_on(self) -> bool:
        if not self._asked:
            self._since_ns = time.monotonic_ns()
        self._asked += 1
        return False

    def _due_ns(self, work: Work, *, begun: bool) -> int:
        """When to ask again."""
        took_ns = sorted(self._took_ns.get(work.key, (0,)))
        usual_ns = took_ns[len(took_ns) // 4]  # the least are what was found late, all at once
        now_ns = time.monotonic_ns()
        pause_ns = max(now_ns - self._since_ns, usual_ns) // SHARE
        due_ns = now_ns + min(max(pause_ns, SHORTEST_NS), LONGEST_NS)
        return max(due_ns, self._since_ns + int(UNASKED * usual_ns)) if begun else due_ns


def _ready(arrays: Sequence[Any]) -> bool | None:
    """Whether all that are left are ready; None where none is left to be asked."""
    answered = False
    for array in arrays:
        with contextlib.suppress(Exception):  # deleted between the two questions
            if array.is_deleted():
                continue
            if not array.is_ready():
                return False
            answered = True
    return True if answered else None


class Waiter:
    """The thread, made with the first task. `put` never waits; all else is the thread's own."""

    def __init__(self) -> None:
        self._new: deque[tuple[Lane, Work]] = deque()
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._lanes: list[Lane] = []
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._stopped = False
        self._numbers = itertools.count(1)
        self._given = 0  # tasks
        self._over = 0  # those of them that are reported

    def put(self, lane: Lane, work: Work) -> bool:
        """False: dropped."""
        if self._stopped or self._given - self._over >= MOST_PENDING:
            return False
        if self._thread is None:
            self._start()
        self._given = next(self._numbers)
        self._new.append((lane, work))
        if lane.idle:
            self._wake.put(None)
        return True

    def settle(self, timeout_s: float) -> bool:
        """For tests and benchmarks: wait until every task has been reported."""
        deadline_s = time.monotonic() + timeout_s
        while self._given > self._over:
            if time.monotonic() > deadline_s:
                return False
            time.sleep(0.001)
        return True

    def stop(self) -> None:
        """At exit: report what is done, and be gone, so that the runtime can be taken down."""
        self._stopped = True
        self._wake.put(None)
        if self._thread is not None:
            self._thread.join(STOP_S)

    def forget(self) -> None:
        """In a forked child: no thread, and the parent's arrays are never touched."""
        self._stopped = True
        _inherited.append((self._new, self._lanes))
        self._new, self._lanes = deque(), []
        self._thread = None

    def _start(self) -> None:
        if not self._starting.acquire(blocking=False):
            return  # another thread is at it
        try:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="perseus-ready", daemon=True)
                thread.start()
                self._thread = thread
                atexit.register(self.stop)  # later than the runtime's own, so it runs before them
        finally:
            self._starting.release()

    def _run(self) -> None:
        try:
            self._wait()
        except Exception as error:  # noqa: BLE001  what is asked is a runtime's
            warn("perseusd hears no more of what this process dispatches: %r", error)
        self._stopped = True  # however it ended: nothing of the runtime's is held any more
        self._new.clear()
        for lane in self._lanes:
            lane.clear()
        self._lanes = []

    def _wait(self) -> None:
        while not self._stopped:
            self._take()
            due_ns = self._look()
            if not self._new:  # since a lane was found empty: its next task wakes this thread
                self._rest(due_ns)
        self._look()

    def _take(self) -> None:
        while self._new:
            lane, work = self._new.popleft()
            lane.add(work)
            if lane.idle:
                lane.idle = False
                self._lanes.append(lane)

    def _look(self) -> int | None:
        """Returns when to look again; None: there is nothing to look at.

        One task of each lane in turn, so that none is told of long before another.
        """
        now_ns = time.monotonic_ns()
        while due := [lane for lane in self._lanes if lane.due_ns <= now_ns]:
            for lane in due:
                self._over += lane.look()
                lane.idle = not lane
            self._lanes = [lane for lane in self._lanes if lane]
        return min((lane.due_ns for lane in self._lanes), default=None)

    def _rest(self, until_ns: int | None) -> None:
        timeout_s = None if until_ns is None else max(0, until_ns - time.monotonic_ns()) * 1e-9
        with contextlib.suppress(queue.Empty):
            self._wake.get(timeout=timeout_s)


_inherited: list[Any] = []
waiter = Waiter()


def _forget_in_child() -> None:
    waiter.forget()


os.register_at_fork(after_in_child=_forget_in_child)
