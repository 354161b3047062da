"""The daemon's shell in virtual time: its core, fed with what the real one would read.

It keeps to the controller's public methods; actions that it does not know are left alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

from perseusd.core.actions import Action, Discard, Notice, Recall, Remember, RequestPlan, SetClock
from perseusd.core.controller import Controller, job_name
from perseusd.core.learned.knowledge import GpuFacts
from perseusd.core.settings import Settings
from perseusd.emulation.fasttime.clocks import Clocks, Write
from perseusd.emulation.fasttime.conditions import Conditions
from perseusd.emulation.fasttime.counter import Counter
from perseusd.emulation.fasttime.disturbances import (
    Announcement,
    ClockProcessAway,
    CounterFault,
    LateRank,
    of,
)
from perseusd.emulation.fasttime.rank import FastRank
from perseusd.emulation.fasttime.solver import Solver
from perseusd.emulation.fasttime.virtual import NS, VirtualTime
from perseusd.emulation.fasttime.wire import Event

OWNER = "fast"
_STATE_NS = NS // 4
"""How often the daemon reads GPUs' reasons."""
_TICK_NS = NS // 10
_PHASE_NS = 7_300_000
"""Between one GPU's ticks and the next one's."""

Memory = MutableMapping[str, Any]
"""What the core has asked to remember, by signature."""
Reclocked = Callable[[int, FastRank, int], None]
"""(now, rank, clock index): a GPU's clock has changed."""


class Shell:
    """ranks: by GPU number. model: the GPUs' name.

    solve: the planner. reclock: told when a GPU's clock has changed. memory: see `Memory`.
    """

    def __init__(
        self,
        ranks: Sequence[FastRank],
        model: str,
        conditions: Conditions,
        settings: Settings,
        time: VirtualTime,
    ) -> None:
        facts = {
            rank.uuid: GpuFacts(rank.uuid, model, tuple(rank.gpu.clocks_mhz)) for rank in ranks
        }
        self.controller = Controller(settings, facts)
        self.notices: list[str] = []
        self.solve: Solver
        self.memory: Memory = {}
        self.reclock: Reclocked
        self.clocks = Clocks(ranks, conditions, time, self)
        self._ranks, self._conditions, self._time = ranks, conditions, time
        self._numbers = {rank.uuid: rank.index for rank in ranks}
        self._counters = [Counter(r.gpu, conditions, r.index * _PHASE_NS) for r in ranks]
        self._joined = [0] * len(ranks)
        self._poll_ns = round(conditions.poll_s * NS)
        self._timer_ns: int | None = None
        self._away = of(ClockProcessAway, conditions.disturbances)
        self._faults = of(CounterFault, conditions.disturbances)
        self._announcements = of(Announcement, conditions.disturbances)
        self._late = of(LateRank, conditions.disturbances)

    def start(self) -> None:
        """Processes say hello, and reading begins."""
        for rank in self._ranks:
            if not any(self._is_late(late, rank) for late in self._late):
                self.join(0, rank)
        self._time.at(0, self._poll)
        self._time.at(0, self._tick)
        self._time.at(0, self._read_states)

    def begin(self, now: int) -> None:
        """An iteration begins."""
        iteration = self._time.iteration
        self.clocks.begin(now)
        for late in self._late:
            for rank in self._ranks:
                if late.at == iteration and self._is_late(late, rank):
                    self.join(now, rank)
        for fault in self._faults:
            if fault.at == iteration:
                self._time.at(now + round(fault.after_s * NS), self._fail_counter, fault)
        for away in self._away:
            if away.at == iteration:
                self._time.at(now + round(away.after_s * NS), self._go_away, away.seconds)
        self._announce(now, iteration)

    # --- processes --------------------------------------------------------------------------

    def join(self, now: int, rank: FastRank) -> None:
        """A process says hello: each time another client."""
        joined = self._joined[rank.index]
        self._joined[rank.index] += 1
        rank.client = f"{rank.index}.{joined}" if joined else str(rank.index)
        self.act(now, self.controller.hello(rank.client, OWNER, rank.hello))

    def lose(self, now: int, rank: FastRank) -> None:
        """A process has ended."""
        if rank.client is not None:
            client, rank.client = rank.client, None
            self.act(now, self.controller.client_lost(client, "has ended"))

    def deliver(self, now: int, client: str, event: Event) -> None:
        """An event arrives."""
        self.act(now, self.controller.stage_event(client, event, now))

    @staticmethod
    def _is_late(late: LateRank, rank: FastRank) -> bool:
        return (late.replica, late.rank) == (rank.replica, rank.rank)

    # --- readings ---------------------------------------------------------------------------

    def _poll(self, now: int) -> None:
        """Only the polls around a tick are passed on: those between tell the core nothing."""
        for rank, counter in zip(self._ranks, self._counters, strict=True):
            if now < counter.moves_ns:
                continue
            before, value = counter.value_j, counter.shown(now)
            if value != before:
                self.controller.energy(rank.uuid, now - self._poll_ns, before)
                self.controller.energy(rank.uuid, now, value)
        self._time.at(now + self._poll_ns, self._poll)

    def _tick(self, now: int) -> None:
        """What is due has timers of its own; this is for what is found missing."""
        self.act(now, self.controller.tick(now))
        self._time.at(now + _TICK_NS, self._tick)

    def _read_states(self, now: int) -> None:
        for rank in self._ranks:
            reasons = self._conditions.reasons(self._time.iteration, rank.replica, rank.rank)
            self.controller.gpu_state(rank.uuid, reasons)
        self._time.at(now + _STATE_NS, self._read_states)

    def _fail_counter(self, now: int, fault: CounterFault) -> None:
        for rank in self._ranks:
            if (fault.replica, fault.rank) == (rank.replica, rank.rank):
                self._counters[rank.index].fail(now, fault)

    # --- actions ----------------------------------------------------------------------------

    def act(self, now: int, actions: Sequence[Action]) -> None:
        """Do what the core asks for."""
        for action in actions:
            match action:
                case SetClock(uuid, clock_mhz):
                    self.clocks.request(now, self._numbers[uuid], clock_mhz)
                case RequestPlan():
                    self._plan(now, action)
                case Notice(_, text):
                    self.notices.append(f"{self._time.iteration}: {text}")
                case Recall(job, signature):
                    self._time.at(now, self._recall, job, signature)
                case Remember(signature, learned):
                    self.memory[signature] = json.loads(json.dumps(dict(learned)))  # as on disk
                case Discard(signature):
                    self.memory.pop(signature, None)
        due = self.controller.next_due_ns()
        if due is not None and (self._timer_ns is None or due < self._timer_ns):
            self._timer_ns = due
            self._time.at(max(due, now), self._timer)

    def _timer(self, now: int) -> None:
        self._timer_ns = None
        self.act(now, self.controller.tick(now))

    def _plan(self, now: int, request: RequestPlan) -> None:
        answer = self.solve(request.problem)
        ready = now + round(self._conditions.planning_s * NS)
        self._time.at(ready, self._planned, request, answer)

    def _planned(self, now: int, request: RequestPlan, answer: Any) -> None:
        self.act(now, self.controller.planned(request.job, request.request, answer))

    def _recall(self, now: int, job: str, signature: str) -> None:
        learned = self.memory.get(signature)
        self.act(now, self.controller.recalled(job, signature, learned))

    def announce(self, now: int, factor: float | None, replica: int = 0) -> None:
        """An operator's word, where the job is known."""
        hello = next(rank.hello for rank in self._ranks if rank.replica == replica)
        name = job_name(OWNER, hello)
        if name in self.controller.jobs:
            self.act(now, self.controller.announce_straggler(name, factor))

    def _announce(self, now: int, iteration: int) -> None:
        for word in self._announcements:
            if word.at == iteration:
                self.announce(now, word.factor, word.replica)
        straggler = self._conditions.straggler
        if straggler is None or not self._conditions.announced:
            return
        if iteration in (straggler.start, straggler.end):
            factor = straggler.factor if straggler.active(iteration) else None
            for replica in range(self._conditions.replicas):
                self.announce(now, factor, replica)

    # --- what became of clock writes --------------------------------------------------------

    def written(self, write: Write) -> None:
        self.controller.written(write.uuid, write.clock_mhz, write.asked_ns, write.end_ns)

    def failed(self, now: int, rank: FastRank, why: str) -> None:
        self.act(now, self.controller.release_gpu(rank.uuid, why))

    def reclocked(self, now: int, rank: FastRank, index: int) -> None:
        self.reclock(now, rank, index)

    def _go_away(self, now: int, seconds: float) -> None:
        """As the service does: what was put back counts as written, and everyone is released."""
        for write in self.clocks.go_away(now):
            self.written(write)
        self.controller.writable = False
        self.act(now, self.controller.release_all("perseusd-clock went away"))
        self._time.at(now + round(seconds * NS), self._come_back)

    def _come_back(self, _now: int) -> None:
        self.clocks.come_back()
        self.controller.writable = self.clocks.present
