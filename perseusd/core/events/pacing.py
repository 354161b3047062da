"""When to ask for which clock, so that it is there at the boundary and not after it.

A clock write takes milliseconds and the GPUs of a node take turns, so a write issued when a
computation starts lands in its middle. `Pacer` follows each rank through its order and, at every
event, predicts when the next run's boundary comes and when to ask. Two harms are told apart:

- raising late slows training: a raise is asked for early enough to land before the boundary, and
  one that should already be there is asked for at once;
- lowering early slows training: a lowering is timed to land at the boundary or just after it.

At a rank's iteration end the clock goes to full for whatever no span covers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from perseusd.core.events.paced import PacedPlan, is_raise

EARLY_NS = 1_500_000
"""A raise lands this much before its boundary (jitter of events and timers)."""

SETTLE_NS = 1_000_000
"""The clock follows a write within about 1 ms (A800: facts on locked clocks)."""

FIRST_LATENCY_NS = 6_000_000
"""Assumed until writes were measured."""

LATENCY_WEIGHT = 0.1
"""Of a new measurement in the running mean of the write latency."""

LATENCY_JUMP = 4.0
"""No single write counts for more than this many times the mean: one that hung for seconds says
nothing about the next, and a mean too long lowers clocks before their boundary."""

HUNG_S = 2.0
"""A write that took longer is none to learn from at all: its driver or perseusd-clock hung, often
under writes of many GPUs at once, of which each would make the mean longer."""

TRUST_WEIGHT = 0.02
"""Of FIRST_LATENCY_NS in the mean, for each iteration in which nothing is written because writes
are believed to take too long: no other measurement would ever correct a mean that was too long."""

PACE_WEIGHT = 0.3
"""Of a new computation in the running pace. A rank that has turned slow would have its clock
lowered long before the boundary by a timeline that does not know of it."""

USUAL_PACE = 0.03
"""A pace that differs by less is noise."""

MOST_PACE = 4.0


class Request(NamedTuple):
    """A rank's GPUs should go to a clock now; None is full clock."""

    rank: int
    clock_mhz: int | None


@dataclass
class _RankPace:
    number: int = -1
    ended: int = 0
    """Computations of its present iteration that have ended."""
    asked_mhz: int | None = None
    due: _Due | None = None
    """The one write that is scheduled for it."""
    since_ns: int | None = None
    """When its present computation started."""
    pace: float = 1.0
    """How many times as long as predicted its computations have taken of late."""
    busy_until_ns: float = 0.0
    then_ns: float = math.inf
    """See `Outlook`: of its latest event."""


class _Due(NamedTuple):
    """position: of the computation before which it is."""

    due_ns: int
    clock_mhz: int | None
    position: int


@dataclass
class Pacer:
    """Times the clock writes of one job. Pure: it is told the time."""

    ranks: int
    latency_ns: float = FIRST_LATENCY_NS
    _plans: list[tuple[int, PacedPlan | None]] = field(default_factory=list)
    """From which iteration on which plan runs, ascending; before the first, full clock."""
    _pace: dict[int, _RankPace] = field(default_factory=dict)
    _begun: int = -1
    _due: tuple[int | None] | None = None
    """The earliest scheduled write's moment, None where there is none; unknown after changes."""

    @property
    def begun(self) -> int:
        """The newest iteration that some rank has begun."""
        return self._begun

    def __post_init__(self) -> None:
        self._pace = {rank: _RankPace() for rank in range(self.ranks)}

    def behind(self, number: int) -> int | None:
        """A rank that was followed and has not begun the iteration before `number`."""
        late = (rank for rank, pace in self._pace.items() if 0 <= pace.number < number - 1)
        return next(late, None)

    def adopt(self, plan: PacedPlan | None, from_iteration: int) -> None:
        """Run `plan` from an iteration on, on every rank; None is full clock throughout."""
        self._plans = [entry for entry in self._plans if entry[0] < from_iteration]
        self._plans.append((from_iteration, plan))
        for pace in self._pace.values():
            pace.pace = 1.0  # it was against another timeline
            pace.then_ns = 0.0  # and so was this: the next event knows better

    def plan_for(self, iteration: int) -> PacedPlan | None:
        if self._plans and self._plans[-1][0] <= iteration:
            return self._plans[-1][1]
        return next((plan for since, plan in reversed(self._plans) if since <= iteration), None)

    def hasten(self) -> list[Request]:
        """Raise at once what runs slower now than the plan in force asks for."""
        paced = self.plan_for(self._begun)
        requests: list[Request] = []
        for rank, pace in self._pace.items():
            clocks = paced.plan.clocks[rank] if paced is not None else ()
            wanted = clocks[pace.ended] if pace.ended < len(clocks) else None
            if is_raise(pace.asked_mhz, wanted):
                requests += self._ask(rank, wanted)
            elif pace.due is not None and not is_raise(pace.asked_mhz, pace.due.clock_mhz):
                pace.due = self._due = None  # of the plan before; the next event knows better
        return requests

    def reset(self) -> None:
        """Forget all plans and scheduled writes; the caller resets the clocks."""
        self._plans.clear()
        for pace in self._pace.values():
            pace.due, pace.asked_mhz, pace.then_ns = None, None, math.inf
        self._due = None

    def measured(self, seconds: float) -> None:
        """A write took this long, waiting for its turn included."""
        if seconds > HUNG_S:
            return
        counted_ns = min(seconds * 1e9, LATENCY_JUMP * self.latency_ns)
        self.latency_ns += LATENCY_WEIGHT * (counted_ns - self.latency_ns)

    def unmeasured(self) -> None:
        """Another iteration without a write, since writes are believed to take too long."""
        self.latency_ns += TRUST_WEIGHT * min(0, FIRST_LATENCY_NS - self.latency_ns)

    def started(self, rank: int, number: int, position: int, now_ns: int) -> list[Request]:
        """A computation has started; returns what is overdue and schedules what comes next."""
        if number > self._begun:
            self._begun = number
            self._drop_past_plans()
            self._schedule_firsts(number, rank, position, now_ns)
        pace = self._pace[rank]
        pace.number, pace.ended, pace.since_ns = number, position, now_ns
        paced = self.plan_for(number)
        if paced is None:
            self._look_ahead(rank, number)
            return self._ask(rank, None)
        outlook = paced.outlooks[rank]
        self._foresee(rank, now_ns + outlook.busy_ns[position], outlook.then_ns[position])
        wanted = paced.plan.clocks[rank][position]
        requests = self._ask(rank, wanted)
        timeline = paced.timelines[rank]
        self._schedule(rank, paced, position, now_ns, timeline.start_s[position])
        return requests

    def ended(self, rank: int, number: int, position: int, now_ns: int) -> list[Request]:
        """A computation has ended: the next one's clock may be set while the rank waits for it."""
        pace = self._pace[rank]
        following = pace.ended = position + 1
        paced = self.plan_for(number)
        if paced is None:
            self._look_ahead(rank, number)
            return self._ask(rank, None)
        clocks, timeline = paced.plan.clocks[rank], paced.timelines[rank]
        self._note_pace(rank, timeline.end_s[position] - timeline.start_s[position], now_ns)
        if following >= len(clocks):
            self._look_ahead(rank, number)
            return self._ask(rank, None)
        self._foresee(rank, now_ns, paced.outlooks[rank].raise_ns[following])
        requests = self._ask(rank, clocks[following])
        self._schedule(rank, paced, following, now_ns, timeline.end_s[position])
        return requests

    def _look_ahead(self, rank: int, number: int) -> None:
        """Nothing is lowered on this rank before its next iteration begins."""
        paced = self.plan_for(number + 1)
        self._foresee(rank, 0.0, math.inf if paced is None else paced.outlooks[rank].raise_ns[0])

    def _foresee(self, rank: int, busy_until_ns: float, then_ns: float) -> None:
        """See `Outlook`; where another plan is to come, its first raise may come sooner."""
        pace = self._pace[rank]
        since, coming = self._plans[-1] if self._plans else (0, None)
        if since > pace.number and coming is not None:
            then_ns = min(then_ns, coming.outlooks[rank].raise_ns[0])
        pace.busy_until_ns, pace.then_ns = busy_until_ns, then_ns

    def _note_pace(self, rank: int, predicted_s: float, now_ns: int) -> None:
        pace = self._pace[rank]
        if pace.since_ns is not None and predicted_s > 0:
            seen = (now_ns - pace.since_ns) * 1e-9 / predicted_s
            pace.pace += PACE_WEIGHT * (min(seen, MOST_PACE) - pace.pace)
        pace.since_ns = None

    def uncovered(self, rank: int) -> list[Request]:
        """Work that no plan covers runs on this rank: full clock, until its next computation."""
        return self._ask(rank, None)

    def due(self, now_ns: int) -> list[Request]:
        """Scheduled writes whose moment has come, the longest overdue first."""
        come = sorted(
            (pace.due.due_ns, rank)
            for rank, pace in self._pace.items()
            if pace.due is not None and pace.due.due_ns <= now_ns
        )
        requests: list[Request] = []
        for _, rank in come:
            pace = self._pace[rank]
            due = pace.due
            assert due is not None
            if pace.since_ns is None or pace.ended != due.position - 1:
                pace.then_ns = 0.0  # it is late: its next event may take this back
            requests += self._ask(rank, due.clock_mhz)
        return requests

    def patience_ns(self, now_ns: int) -> float:
        """For how long, all events until now being heard, no raise depends on hearing of more.

        inf where nothing is lowered.
        """
        least_ns = min(
            (pace.then_ns + max(pace.busy_until_ns - now_ns, 0.0)) * min(pace.pace, 1.0)
            for pace in self._pace.values()
        )
        lead_ns = 2 * self.latency_ns + SETTLE_NS + EARLY_NS  # another's write may go before
        return max(0.0, least_ns - lead_ns)

    def next_due_ns(self) -> int | None:
        if self._due is None:
            waiting = [pace.due.due_ns for pace in self._pace.values() if pace.due is not None]
            self._due = (min(waiting, default=None),)
        return self._due[0]

    def _drop_past_plans(self) -> None:
        """Some ranks may still be in the iteration before the newest, and none in an older one."""
        while len(self._plans) > 1 and self._plans[1][0] < self._begun:
            del self._plans[0]

    def _ask(self, rank: int, clock_mhz: int | None) -> list[Request]:
        pace = self._pace[rank]
        pace.due = self._due = None
        if pace.asked_mhz == clock_mhz:
            return []
        pace.asked_mhz = clock_mhz
        return [Request(rank, clock_mhz)]

    def _schedule_firsts(self, number: int, first: int, position: int, now_ns: int) -> None:
        """The iteration has begun somewhere: time every other rank's first clock."""
        paced = self.plan_for(number)
        if paced is None:
            return
        origin_ns = now_ns - int(paced.timelines[first].start_s[position] * 1e9)
        for rank in range(self.ranks):
            clocks = paced.plan.clocks[rank]
            pace = self._pace[rank]
            at_work = pace.number >= 0 and pace.ended < len(clocks)
            if rank == first or not clocks or pace.number >= number or at_work:
                continue
            start_ns = origin_ns + int(paced.timelines[rank].start_s[0] * 1e9)
            self._put(rank, clocks[0], 0, start_ns, now_ns)

    def _schedule(
        self, rank: int, paced: PacedPlan, position: int, now_ns: int, now_s: float
    ) -> None:
        """Schedule this rank's next change after `position`, whose clock was asked for.

        now_s: where on the predicted timeline the rank is now; the remainder of the prediction is
        shifted by that.
        """
        clocks, change = paced.plan.clocks[rank], paced.changes[rank][position]
        clock_mhz = clocks[change] if change < len(clocks) else None
        if clock_mhz != clocks[position]:
            before_s = paced.timelines[rank].end_s[change - 1] - now_s
            after_s = self._really(rank, before_s, clock_mhz)
            self._put(rank, clock_mhz, change, now_ns + _ns(after_s), now_ns)

    def _really(self, rank: int, predicted_s: float, clock_mhz: int | None) -> float:
        """Until a boundary, at the rank's present pace; a raise is not put off for that."""
        pace = self._pace[rank]
        if abs(pace.pace - 1) < USUAL_PACE:
            return predicted_s
        raising = is_raise(pace.asked_mhz, clock_mhz)
        return predicted_s * (min(pace.pace, 1.0) if raising else pace.pace)

    def _put(
        self, rank: int, clock_mhz: int | None, position: int, boundary_ns: int, now_ns: int
    ) -> None:
        pace = self._pace[rank]
        raising = is_raise(pace.asked_mhz, clock_mhz)
        lead = self.latency_ns + SETTLE_NS
        if raising:
            lead += EARLY_NS + self.latency_ns * self._crowd(rank, boundary_ns)
        pace.due, self._due = _Due(max(now_ns, boundary_ns - int(lead)), clock_mhz, position), None

    def _crowd(self, rank: int, boundary_ns: int) -> int:
        """Other ranks' writes due about when this one must be under way: they go before it."""
        about = boundary_ns - self.latency_ns
        return sum(
            pace.due is not None and abs(pace.due.due_ns - about) < self.latency_ns
            for other, pace in self._pace.items()
            if other != rank
        )


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
