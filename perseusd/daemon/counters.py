"""What the daemon has done since it started, counted: for metrics, and for whoever asks.

The loop only adds to numbers; what they mean together is worked out by whoever reads them. Every
key comes from a set that is fixed in the code (codes, states, causes), so that none of these grows
with what users send.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from perseus_hooks.events import Goodbye, Hello, StageEnd, StageStart

from perseusd.clock.protocol import ResultCode
from perseusd.core.actions import JobEnded, Notice
from perseusd.core.jobs.states import State
from perseusd.core.jobs.why import WhyCode, code_of
from perseusd.core.savings.samples import Estimate, added

TURN_BOUNDS_S: Final = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
WRITE_BOUNDS_S: Final = (1e-3, 2e-3, 3e-3, 5e-3, 7.5e-3, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0)
PLAN_BOUNDS_S: Final = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)

FOLLOWED: Final = 4096
"""Clients whose events are numbered on; of more, those that came first are followed anew."""

AWAITED: Final = 1024
"""Plans that were asked for, and whose answer may be to come."""


class Histogram:
    """How many values lay at or below each bound, and their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def as_json(self) -> dict[str, Any]:
        """`buckets`: [upper bound, values up to it], ascending; `count` and `sum` of all values."""
        total, buckets = 0, []
        for bound, count in zip(self._bounds, self._counts, strict=False):
            total += count
            buckets.append([bound, total])
        return {"buckets": buckets, "count": total + self._counts[-1], "sum": round(self._sum, 9)}


@dataclass
class Events:
    """Of hooks: what came, and what is missing between."""

    received: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    _numbers: dict[str, int] = field(default_factory=dict)
    """The latest event's, by client."""

    def heard(self, client: str, event: Hello | StageStart | StageEnd | Goodbye) -> None:
        """Events of a client are numbered one by one; a gap is what was lost on the way."""
        self.received[_KINDS[type(event)]] += 1
        if isinstance(event, Hello):
            self._numbers.pop(client, None)
            return
        number, before = event.sequence, self._numbers.get(client, 0)
        if 0 < before < number - 1:
            self.lost += number - 1 - before
        if isinstance(event, Goodbye):
            self._numbers.pop(client, None)
            return
        self._numbers[client] = number
        if not before and len(self._numbers) > FOLLOWED:
            del self._numbers[next(iter(self._numbers))]


_KINDS: Final = {
    Hello: "hello",
    StageStart: "stage_start",
    StageEnd: "stage_end",
    Goodbye: "goodbye",
}


@dataclass
class Writes:
    """Clock writes, by what became of them, and of the clock process that makes them."""

    results: Counter[ResultCode] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    """By GPU: that the driver was asked for, and did."""
    failed: Counter[str] = field(default_factory=Counter)
    """By GPU."""
    latency: Histogram = field(default_factory=lambda: Histogram(WRITE_BOUNDS_S))
    """Of the driver's call."""
    process_lost: int = 0
    heartbeats_lost: int = 0

    def wrote(self, uuid: str, latency_s: float) -> None:
        self.done[uuid] += 1
        self.latency.add(latency_s)


@dataclass
class Loop:
    """How long the loop's turns take, and how soon a clock write is asked for."""

    turns: Histogram = field(default_factory=lambda: Histogram(TURN_BOUNDS_S))
    decisions: Histogram = field(default_factory=lambda: Histogram(TURN_BOUNDS_S))
    """From the loop's waking up, by an event or because something was due, to the request."""
    _began_s: float = 0.0

    def begins(self, now_s: float) -> None:
        self._began_s = now_s

    def ended(self) -> None:
        self.turns.add(time.monotonic() - self._began_s)

    def decided(self) -> None:
        self.decisions.add(time.monotonic() - self._began_s)


@dataclass
class Plans:
    """Asked for, made and not made, with the time from the request to the answer."""

    asked: int = 0
    made: int = 0
    failed: int = 0
    duration: Histogram = field(default_factory=lambda: Histogram(PLAN_BOUNDS_S))
    _asked_s: dict[int, float] = field(default_factory=dict)
    """By request; of one that a newer one replaced no answer comes."""

    def request(self, number: int) -> None:
        self.asked += 1
        self._asked_s[number] = time.monotonic()
        if len(self._asked_s) > AWAITED:
            del self._asked_s[next(iter(self._asked_s))]

    def answered(self, number: int, *, made: bool) -> None:
        if made:
            self.made += 1
        else:
            self.failed += 1
        if (asked_s := self._asked_s.pop(number, None)) is not None:
            self.duration.add(time.monotonic() - asked_s)


@dataclass
class Jobs:
    """What became of jobs."""

    ended: int = 0
    entered: Counter[State] = field(default_factory=Counter)
    """States that jobs went to."""
    releases: Counter[WhyCode] = field(default_factory=Counter)
    """Of these, to release: why."""
    stragglers: Counter[str] = field(default_factory=Counter)
    """That were found, by their cause as far as it was known then."""
    saved_j: Estimate | None = None
    """By jobs that have ended."""
    _straggling: dict[tuple[object, ...], int] = field(default_factory=dict)
    """Those that were counted already: since which iteration."""

    def notice(self, notice: Notice) -> None:
        if notice.state is not None:
            self.entered[notice.state] += 1
            if notice.state is State.RELEASE:
                self.releases[code_of(notice.why) or WhyCode.OTHER] += 1
        if (straggler := notice.straggler) is not None:
            who = notice.job, straggler.replica, straggler.stage, straggler.rank
            if straggler.until_iteration is not None:
                self._straggling.pop(who, None)
            elif self._straggling.get(who) != straggler.since_iteration:
                self._straggling[who] = straggler.since_iteration
                self.stragglers[straggler.cause or "unknown"] += 1

    def end(self, ended: JobEnded) -> None:
        self.ended += 1
        self.saved_j = added(self.saved_j, ended.saved_j)
        for who in [who for who in self._straggling if who[0] == ended.job]:
            del self._straggling[who]


@dataclass
class Counters:
    """All that is counted; each part of the daemon adds to its own."""

    events: Events = field(default_factory=Events)
    refused: Counter[str] = field(default_factory=Counter)
    """By code."""
    writes: Writes = field(default_factory=Writes)
    loop: Loop = field(default_factory=Loop)
    plans: Plans = field(default_factory=Plans)
    jobs: Jobs = field(default_factory=Jobs)
    reloads: Mapping[str, int] = field(default_factory=dict)
    """Of the configuration, by what became of them."""

    def as_json(self, running_saved_j: Sequence[Estimate | None] = ()) -> dict[str, Any]:
        """The status object's `counters`. running_saved_j: what each job that runs has saved."""
        saved = self.jobs.saved_j
        for estimate in running_saved_j:
            saved = added(saved, estimate)
        writes, plans, jobs = self.writes, self.plans, self.jobs
        return {
            "events": {kind: self.events.received[kind] for kind in _KINDS.values()},
            "events_lost": self.events.lost,
            "refused": dict(self.refused),
            "clock_writes": {code.name.lower(): writes.results[code] for code in ResultCode},
            "clock_write_s": writes.latency.as_json(),
            "clock_process_lost": writes.process_lost,
            "heartbeats_lost": writes.heartbeats_lost,
            "turn_s": self.loop.turns.as_json(),
            "decision_s": self.loop.decisions.as_json(),
            "plans": {"asked": plans.asked, "made": plans.made, "failed": plans.failed},
            "plan_s": plans.duration.as_json(),
            "reloads": dict(self.reloads),
            "jobs_ended": jobs.ended,
            "states": {state.value: jobs.entered[state] for state in State},
            "releases": {code.value: jobs.releases[code] for code in WhyCode},
            "stragglers": dict(jobs.stragglers),
            "energy_saved_j": 0.0 if saved is None else round(saved.value, 3),
            "energy_saved_j_low": None if saved is None else round(saved.low, 3),
            "energy_saved_j_high": None if saved is None else round(saved.high, 3),
        }
