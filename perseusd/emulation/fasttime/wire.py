"""From what ranks do to the events that the daemon gets: stamped late, lost, swapped, delayed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from perseus_hooks.events import StageEnd, StageStart

from perseusd.emulation.fasttime.conditions import Conditions
from perseusd.emulation.fasttime.disturbances import (
    LateEvents,
    LostEvents,
    ReorderedEvents,
    SilentRank,
    of,
)
from perseusd.emulation.fasttime.program import Step
from perseusd.emulation.fasttime.rank import FastRank
from perseusd.emulation.fasttime.virtual import NS, VirtualTime

Event = StageStart | StageEnd
Deliver = Callable[[int, str, Event], None]
"""(now, client, event)"""

_SWAPPED_NS = 1_000
"""A swapped event arrives so long after the one that it should have preceded."""


@dataclass
class _Line:
    """What one client has sent. held: an event that waits for the next one to overtake it."""

    sequence: int = 0
    token: int = 0
    stamped_ns: int = 0
    delivered_ns: int = 0
    held: Event | None = None


class Wire:
    """told: the iteration's number as the trainer says it."""

    def __init__(self, conditions: Conditions, time: VirtualTime, deliver: Deliver) -> None:
        self.told = 0
        self._time, self._deliver = time, deliver
        self._random = Random(f"{conditions.seed} wire")
        self._delay_ns = conditions.event_delay_s * NS
        self._delivery_ns = round(conditions.delivery_s * NS)
        self._lost = of(LostEvents, conditions.disturbances)
        self._swapped = of(ReorderedEvents, conditions.disturbances)
        self._late = of(LateEvents, conditions.disturbances)
        self._silent = of(SilentRank, conditions.disturbances)
        self._lines: dict[str, _Line] = defaultdict(_Line)
        self._hits: dict[tuple[int, int, int], tuple[int, int]] = {}

    def started(self, now: int, rank: FastRank, step: Step) -> None:
        if rank.client is None:
            return
        line = self._lines[rank.client]
        line.sequence += 1
        line.token += 1
        stamp = self._stamp(now, line)
        event = StageStart(
            line.sequence, stamp, line.token, step.instruction,
            step.microbatch, step.chunk, None, self.told,
        )  # fmt: skip
        self._send(stamp, rank, line, event)

    def ended(self, now: int, rank: FastRank) -> None:
        if rank.client is None:
            return
        line = self._lines[rank.client]
        line.sequence += 1
        stamp = self._stamp(now, line)
        self._send(stamp, rank, line, StageEnd(line.sequence, stamp, line.token))

    def _stamp(self, now: int, line: _Line) -> int:
        """A client's stamps are never out of order."""
        late_ns = self._random.expovariate(1.0) * self._delay_ns
        line.stamped_ns = max(now + int(late_ns), line.stamped_ns + 1)
        return line.stamped_ns

    def _send(self, stamp: int, rank: FastRank, line: _Line, event: Event) -> None:
        assert rank.client is not None
        iteration = self._time.iteration
        if self._silent and _any(self._silent, iteration, rank):
            return
        if self._lost and self._hit(self._lost, rank):
            return
        if self._swapped and line.held is None and self._hit(self._swapped, rank):
            line.held = event
            return
        at = max(stamp + self._delivery_ns + self._lateness_ns(rank), line.delivered_ns)
        line.delivered_ns = at
        self._time.at(at, self._deliver, rank.client, event)
        if line.held is not None:
            self._time.at(at + _SWAPPED_NS, self._deliver, rank.client, line.held)
            line.delivered_ns += _SWAPPED_NS
            line.held = None

    def _lateness_ns(self, rank: FastRank) -> int:
        iteration = self._time.iteration
        concerned = (d for d in self._late if d.now(iteration, rank.replica, rank.rank))
        return round(sum(d.seconds for d in concerned) * NS)

    def _hit(self, spells: list[LostEvents] | list[ReorderedEvents], rank: FastRank) -> bool:
        """Whether one of them takes this event; each counts the rank's events by iteration."""
        iteration, taken = self._time.iteration, False
        for spell in spells:
            if not spell.now(iteration, rank.replica, rank.rank):
                continue
            key = id(spell), iteration, rank.index
            seen, hits = self._hits.get(key, (0, 0))
            due = seen >= spell.skip and (spell.most is None or hits < spell.most)
            hit = due and not taken and self._random.random() < spell.share
            self._hits[key] = seen + 1, hits + hit
            taken = taken or hit
        return taken


def _any(spells: list[SilentRank], iteration: int, rank: FastRank) -> bool:
    return any(s.now(iteration, rank.replica, rank.rank) for s in spells)
