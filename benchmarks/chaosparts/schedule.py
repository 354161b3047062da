"""A schedule is a seed: which faults, when, for how long. And what became of one."""

from __future__ import annotations

import heapq
import random
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from nvml_faults import set_faults

from chaosparts.faults import FAULTS
from chaosparts.hand import End, Event, Hand
from chaosparts.observer import STALL_S, Observer
from chaosparts.rig import Rig, send

TICK_S = 0.02
MOST_EVENTS = 4
TAIL_S = 1.4
"""After the last fault: longer than a death's grace, so that what it left is seen."""

PENDING_S = 15.0
"""How long the tail is at most, while a clock of an ended lease is still lowered."""

CALL_S = 0.5
"""A hook call never waits; on a busy machine it may be held up for a while."""

LOWERED_S = 18.0
"""How long a rig may take until some clock is lowered, before everything is started anew."""

NEW_RIGS = 8
ANSWER_S = 5.0

PATIENCE_S = 60.0
"""For an answer of a daemon that was just started, or that a busy machine starves."""


class NotLoweredError(Exception):
    """Of several new rigs none had a clock lowered in time: this machine has too much to do."""


@dataclass
class Outcome:
    """begun: whether a rig was ready for it. lowered: whether some clock was, at the first fault.

    hits: the faults that met a lowered clock. worst_s: the longest that a clock stayed lowered
    after each cause, excused cases left out. replaced: why a rig that was there before had no clock
    lowered in time, in the daemon's words.
    """

    seed: int
    events: list[str]
    begun: bool = True
    lowered: bool = False
    hits: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    worst_s: dict[str, float] = field(default_factory=dict)
    longest_call_s: float = 0.0
    calls: int = 0
    iterations: int = 0
    lag_s: float = 0.0
    replaced: str = ""
    seconds: float = 0.0
    log: list[str] = field(default_factory=list)


def schedule_of(seed: int) -> list[Event]:
    """One to four faults within two and a half seconds, which may overlap."""
    chance = random.Random(seed)
    names, weights = list(FAULTS), [weight for weight, _ in FAULTS.values()]
    events, at_s = [], 0.0
    for kind in chance.choices(names, weights, k=chance.randint(1, MOST_EVENTS)):
        lasts_s = chance.choice((0.05, 0.3, 0.8, 1.5, 2.2)) * chance.uniform(0.7, 1.3)
        picks = (chance.random(), chance.random(), chance.random())
        events.append(Event(kind, at_s, lasts_s, picks))
        at_s += chance.choice((0.0, 0.05, 0.3, 0.8)) * chance.uniform(0.5, 1.5)
    return events


class Runner:
    """Runs schedules one after another on one rig, which is made anew where it does not recover."""

    def __init__(self, library: Path) -> None:
        self._library = library
        self._rig: Rig | None = None
        self._ends: list[str] = []  # what was wrong at the end of rigs
        self._log: list[str] = []  # of the last rig that ended

    def run(self, seed: int) -> Outcome:
        begin_s = time.monotonic()
        events = schedule_of(seed)
        outcome = Outcome(seed, [f"{e.kind} @{e.at_s:.2f} for {e.lasts_s:.2f}" for e in events])
        try:
            self._lower(outcome)
            self._observer.begin()
            self._perform(events, outcome)
            self._check(outcome)
        except NotLoweredError:
            outcome.begun = False
        except Exception as error:  # noqa: BLE001 - told with its seed; the next one starts anew
            outcome.violations.append(f"the schedule itself failed: {error!r}")
        if outcome.violations:
            self._end()
        outcome.violations += [wrong for wrong in self._ends if wrong not in outcome.violations]
        if outcome.violations:
            outcome.log = self._log
        self._ends = []
        outcome.seconds = time.monotonic() - begin_s
        return outcome

    def close(self) -> list[str]:
        """The end of the last rig; what was wrong with it."""
        self._end()
        return self._ends

    # -- before --------------------------------------------------------------------------------

    def _lower(self, outcome: Outcome) -> None:
        """Some clock lowered, by a plan or a trial, on the rig that is there or on a new one."""
        if self._rig is not None and not self._lowered(LOWERED_S):
            outcome.replaced = _why_not(self._rig)
            self._end()
        for _ in range(NEW_RIGS):
            if self._rig is not None:
                return
            self._begin()
            if not self._lowered(LOWERED_S):
                self._end()
        raise NotLoweredError

    def _begin(self) -> None:
        self._rig = Rig(self._library)
        self._observer = Observer(self._rig.node.path)
        self._hand = Hand(self._rig, self._observer)
        self._rig.start_daemon()
        self._rig.start_job()
        self._rig.start_probe()

    def _lowered(self, patience_s: float) -> bool:
        deadline_s = time.monotonic() + patience_s
        while time.monotonic() < deadline_s:
            self._tick()
            if self._observer.lowered():
                return True
            time.sleep(TICK_S / 4)
        return False

    # -- the schedule --------------------------------------------------------------------------

    def _perform(self, events: list[Event], outcome: Outcome) -> None:
        self._await_lowered()
        begin_s = time.monotonic()
        self._rig_there.probed()
        done = self._rig_there.iterations()
        due: list[tuple[float, int, Event | End]] = []
        for number, event in enumerate(events):
            heapq.heappush(due, (begin_s + event.at_s, number, event))
        while due:
            self._tick()
            while due and due[0][0] <= time.monotonic():
                _, number, what = heapq.heappop(due)
                if isinstance(what, Event):
                    end = self._befall(what, outcome, first=number == 0)
                    end_s = time.monotonic() + what.lasts_s
                    heapq.heappush(due, (end_s, number + len(events), end))
                else:
                    what()
            time.sleep(TICK_S)
        self._heal()
        while self._hand.starting_since_s is not None:
            self._tick()
            time.sleep(TICK_S)
        tail_s = time.monotonic() + TAIL_S
        while time.monotonic() < tail_s or (
            self._observer.pending() and time.monotonic() < tail_s + PENDING_S
        ):
            self._tick()
            time.sleep(TICK_S)
        outcome.iterations = max(0, self._rig_there.iterations() - done)

    def _await_lowered(self) -> None:
        """Plans leave some moments of an iteration at full clock."""
        deadline_s = time.monotonic() + 1.0
        while not self._observer.lowered() and time.monotonic() < deadline_s:
            time.sleep(0.002)

    def _befall(self, event: Event, outcome: Outcome, *, first: bool) -> End:
        if self._observer.lowered():
            outcome.hits.append(event.kind)
            outcome.lowered = outcome.lowered or first
        return FAULTS[event.kind][1](self._hand, event)

    def _heal(self) -> None:
        """Nothing stopped, no fault, a daemon and a job: whatever the schedule's ends left."""
        rig = self._rig_there
        set_faults(rig.node.path)
        for pid in list(self._hand.stopped):
            send(pid, signal.SIGCONT)
        self._hand.stopped.clear()
        self._hand.start_daemon()

    def _tick(self) -> None:
        self._hand.tick()
        stalled_s = time.monotonic() - self._hand.moved_s
        if stalled_s > STALL_S + self._observer.lag_s(self._hand.moved_s):
            self._observer.violation(f"training has stood still for {stalled_s:.1f} s")
            self._hand.moved_s = time.monotonic()

    # -- after ---------------------------------------------------------------------------------

    def _check(self, outcome: Outcome) -> None:
        rig = self._rig_there
        if rig.status(ANSWER_S) is None and not self._answers_later():
            outcome.violations.append("the daemon does not answer; where it stands is in its log")
            send(self._hand.daemon_pid, signal.SIGABRT)  # and leaves its stacks there
            time.sleep(1)
        outcome.calls, outcome.longest_call_s, last_s = rig.probed()
        seen = self._observer.seen
        if outcome.longest_call_s > CALL_S + seen.lag_s:
            outcome.violations.append(f"a hook call took {outcome.longest_call_s:.2f} s")
        silent_s = time.monotonic() - last_s
        if silent_s > STALL_S + seen.lag_s:
            outcome.violations.append(f"a hook call has not returned for {silent_s:.1f} s")
        outcome.violations += seen.violations
        outcome.violations += _errors(rig)
        outcome.worst_s, outcome.lag_s = seen.worst_s, seen.lag_s

    def _answers_later(self) -> bool:
        """One that was just started again needs its time on a busy machine."""
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s:
            self._tick()
            if self._rig_there.ready_s and self._rig_there.status(1.0) is not None:
                return True
            time.sleep(0.1)
        return False

    def _end(self) -> None:
        """The rig's end: the daemon stops with 0, no process of it stays, no clock is lowered."""
        rig, self._rig = self._rig, None
        if rig is None:
            return
        try:
            self._ends += _errors(rig)
            self._log = list(rig.log)[-100:]
            self._hand.daemon_to_die = True
            set_faults(rig.node.path)
            ready = rig.ready_s > 0 and rig.daemon_lives
            code = rig.stop_daemon()
            if ready and code != 0:
                self._ends.append(f"at the end: SIGTERM of perseusd led to status {code}")
            if locked := self._observer.locked():
                self._ends.append(f"at the end: GPUs {locked} are lowered")
        finally:
            self._observer.close()
            rig.close()

    @property
    def _rig_there(self) -> Rig:
        if self._rig is None:
            raise RuntimeError("there is no rig")
        return self._rig


def _errors(rig: Rig) -> list[str]:
    return [f"in the log: {line}" for line in rig.log if "an error of ours" in line]


def _why_not(rig: Rig) -> str:
    """Why its clocks are not lowered."""
    status = rig.status(ANSWER_S)
    if status is None:
        return "the daemon does not answer"
    jobs = (f"{job['id']}: {job['state']}, {job['why']}" for job in status["jobs"])
    return "; ".join(jobs) or "there is no job"
