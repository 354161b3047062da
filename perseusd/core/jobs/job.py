"""One pipeline under the daemon's care: its members, its state, and what to do next.

It reads downward: members join, their events make iterations, iterations make knowledge, and at
each iteration's end `_decide` asks what the present state asks for: wait, try clocks, plan, correct
the plan, or let go. Nothing here does I/O: what is to be done is left in `actions`.

Its parts, each built on the one before: `following`, `studying`, `observing`, `reacting` (to
stragglers), `guarding`, `adjusting` (to other settings), and this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from zlib import crc32

from perseusd.core.actions import Notice, RequestPlan
from perseusd.core.events.iterations import JobIteration
from perseusd.core.events.paced import PacedPlan, paced
from perseusd.core.jobs.adjusting import Adjusting
from perseusd.core.jobs.deadline import FEWEST_WRITES, URGENT_SHARE, deadline_problem, most_writes
from perseusd.core.jobs.guard import Breach
from perseusd.core.jobs.states import CLOCKS_MAY_BE_LOWERED, Signal, State
from perseusd.core.jobs.understanding import Episode
from perseusd.core.learned.knowledge import GpuFacts
from perseusd.core.model import PlanResult, Problem
from perseusd.core.savings.ledger import Record
from perseusd.core.savings.reference import due
from perseusd.core.settings import Settings
from perseusd.errors import PlanningError

WRITES_PER_WINDOW = 2
"""Of a trial: down and up."""

REMEMBERED_AT, REMEMBERED_EVERY = 20, 200
"""Held iterations after which what is known is kept on disk: soon, since holding teaches most at
first, and again and again. What is new is kept at once, too, should the job end before."""

ALIKE = 1.1
"""Largest over smallest of iterations that are alike; a checkpoint's or a straggler's are not."""

REFERENCE_AHEAD = 2
"""Iterations from the newest whole one to what is drawn: the next may have begun meanwhile, on one
replica and not on another."""

UNSETTLED = 4

PATIENCE = 8
"""Iterations for which learning waits for a straggler's end."""


class Awaited(NamedTuple):
    """A plan that was asked for: its problem, and what was known of stragglers then.

    version: the reaction's.  eased: whether the plan is for stragglers.
    """

    problem: Problem
    version: int
    eased: bool


class Job(Adjusting):
    """One replica's pipeline under the daemon's care."""

    def __init__(
        self, name: str, settings: Settings, gpus: Mapping[str, GpuFacts], replica: int = 0
    ) -> None:
        super().__init__(name, settings, gpus, replica)
        self._requests = 0
        self._awaited: dict[int, Awaited] = {}
        """By the request's number, ascending."""
        self._answered = -1
        """The version of the reaction that the plan in force was made for."""
        self._held = self._put_offs = 0
        self._eased: dict[int, bool] = {}
        """Of the newest iterations, whether they ran under a plan for a straggler."""

    # --- decisions, at each iteration's end -----------------------------------------------------

    def _phase(self, iteration: JobIteration, episode: Episode) -> str:
        """What the iteration counts for: a state, a straggler's doing, or a change of plans."""
        assert episode.pacer is not None
        planned = episode.pacer.plan_for(iteration.number)
        before = self._eased.get(iteration.number - 1, False)
        unusual = planned is not None and planned is not episode.normal
        self._eased = {iteration.number - 1: before, iteration.number: unusual}
        own = self._settings.observe and bool(self.ill)  # its plan is nobody's to change
        was_slowed, now_slowed = episode.slowed_by_straggler, self.reaction.active or own
        episode.slowed_by_straggler = now_slowed
        lowered = self.state in CLOCKS_MAY_BE_LOWERED or self._settings.observe
        if lowered and (was_slowed or now_slowed):
            return "straggler"
        if self.state is State.HOLD and iteration.number == episode.reference and planned is None:
            return "reference"
        if self.state is State.HOLD and (planned is None or unusual):
            return "change"
        return self.state.value

    def _finished(self, finished: Record) -> None:
        if finished.phase in ("hold", "change", "straggler"):
            self._lasted(finished)
        if finished.phase == State.HOLD:
            waited_s = finished.time_s - finished.makespan_s - self.ledger.usual_gap_s()
            self._hold.iteration(finished.time_s, waited_s)
        elif finished.phase == "straggler":
            self._check_announced(finished, self._eased.get(finished.number, False))

    def _decide(self, episode: Episode) -> None:
        match self.state:
            case State.BASELINE:
                self._decide_baseline(episode)
            case State.LEARN:
                if not self._guarded():
                    self._decide_learn(episode)
            case State.HOLD:
                if not self._guarded():
                    self._decide_hold(episode)
            case State.RELEASE:
                episode.clear += episode.newest > episode.lowered_until
                if episode.clear >= self._clear_iterations():
                    self._move(Signal.CLEAR)
                    self._decide_baseline(episode)

    def _decide_baseline(self, episode: Episode) -> None:
        measured = self.ledger.count("baseline")
        wanted = self._settings.baseline_iterations + self._waiting
        if self._settings.observe:
            self._observe()
        elif not self.writable:
            self._why = self.withheld or "no clock can be written: perseusd-clock is not there"
        elif measured < wanted:
            self._why = f"measuring the baseline: {measured} of {wanted} iterations"
        elif not self._settled(measured):
            self._why = "measuring the baseline: its iterations differ widely"
        elif not self._judged():
            self._forget()
            self._why = "the job has changed: it is measured and learned anew"
        elif self._has_nothing_to_wait_for():
            self._why = (
                "a job of one stage has nothing to wait for: it is measured, and stays at full "
                "clock (unless it has a slowdown budget of its own)"
            )
        elif self._writes() < FEWEST_WRITES:
            self._why = (
                "its iterations are too short: within [limits] max_writes_per_s and "
                "max_node_write_share, not even one lower clock and back fits into one"
            )
            self._trust_writes()
        elif measured >= self._settings.baseline_iterations + self._waiting:
            self._waiting = 0
            self._recognise()
            self._move(Signal.MEASURED)
            self._why = ""
            plan, self._resumable = self._resumable, None
            self._resume(plan)

    def _has_nothing_to_wait_for(self) -> bool:
        """One stage, and too little room for clock writes to be of use to other replicas."""
        one = self.roster.stages == 1 and not self.roster.slowdown_budget
        return one and self._writes() < FEWEST_WRITES

    def _settled(self, measured: int) -> bool:
        """Whether the newest baseline iterations are alike; those before that were not, go.

        A job whose iterations always differ is taken as it is after UNSETTLED times as many.
        """
        few = self._settings.baseline_iterations
        times, makespans = self.ledger.sample("baseline"), self.ledger.makespans("baseline")
        if times is None or few < 2:
            return True
        newest = (times.values[-few:], makespans.values[-few:])
        if any(max(values) > ALIKE * min(values) for values in newest):
            return measured >= UNSETTLED * few
        usual = times.values[-1]
        if any(not usual / ALIKE < value < usual * ALIKE for value in times.values):
            self.ledger.keep_newest("baseline", few)
        return True

    def _resume(self, plan: PacedPlan | None) -> None:
        episode, known = self._episode, self._known
        assert episode is not None
        assert known is not None
        if plan is None:
            self._basis = known.knowledge.time_model().top_s
            self._decide_learn(episode)
            return
        episode.normal = plan
        self._move(Signal.PLANNED)
        self._why = ""
        self._hold.start_plan()
        self._answered = -1
        self._adopt(self._meanwhile())
        if self.reaction.eased:
            self._request_plan()

    def _writes(self) -> int:
        """Clock writes that an iteration has room for, per GPU."""
        pacer, usual_s = self._pacer, self.ledger.typical_time_s()
        if pacer is None or usual_s is None:
            return 0
        gpus = max(self.node_gpus, len(self.roster.all_gpus()))
        return most_writes(self._settings, usual_s, pacer.latency_ns * 1e-9, gpus)

    def _trust_writes(self) -> None:
        """Writes that took long, for a while, are no reason never to try one again."""
        if (pacer := self._pacer) is not None:
            pacer.unmeasured()
            self._latency_ns = pacer.latency_ns

    def _decide_learn(self, episode: Episode) -> None:
        known = self._known
        assert known is not None
        self._check_memory(known)
        exhausted = known.explorer.iterations >= self._settings.max_learning_iterations
        if self._slower(known):
            self._put_off()
            return
        self._put_offs = 0
        try:
            if self._recognised or known.explorer.done(known.knowledge) or exhausted:
                self._adopt(None)
                if not self._awaited:
                    self._request_plan()
            else:
                windows = max(1, self._writes() // WRITES_PER_WINDOW)
                trial = known.explorer.next_trial(known.knowledge, windows)
                curves, _ = known.knowledge.curves(known.graph.kinds)
                self._adopt(paced(trial, known.graph, curves))
        except PlanningError as error:
            self._adopt(None)
            self._no_plan(str(error))

    def _put_off(self) -> None:
        """Nothing is learned while ranks straggle; one that always does is what the job is now."""
        self._adopt(None)
        self._put_offs += 1
        if self._put_offs > PATIENCE:
            self._put_offs = 0
            self._trouble("some ranks stay slower than they were: the job is learned anew")
            self._forget()

    def _decide_hold(self, episode: Episode) -> None:
        baseline = self.ledger.sample("baseline")
        assert baseline is not None
        if self.reaction.active:
            stale = self.reaction.eased and self._answered != self.reaction.version
            if (stale or self._parked) and not self._awaited:
                self._request_plan()
        elif self._hold.outgrown(baseline):
            self._doubt_all(Breach.FASTER)
        else:
            self._held += 1
            self._quiet()
            if self._held % REMEMBERED_EVERY == REMEMBERED_AT or (
                self._held == 1 and not self._recognised
            ):
                self._remember()
            if self._awaited:
                return
            if self._parked or episode.normal is None or self._hold.wants_plan(baseline):
                self._request_plan()
            else:
                self._refer(episode)

    def _refer(self, episode: Episode) -> None:
        """Rarely, one iteration at full clock, so that what is saved stays a measurement.

        All replicas draw the same one: they wait for each other.
        """
        pacer = self._pacer
        assert pacer is not None
        number = episode.newest + REFERENCE_AHEAD
        if number <= pacer.begun or not due(crc32(self.first_replica.encode()), number):
            return
        episode.reference = number
        pacer.adopt(None, episode.reference)
        pacer.adopt(episode.normal, episode.reference + 1)

    # --- plans ----------------------------------------------------------------------------------

    def planned(self, request: int, answer: PlanResult | str) -> None:
        """The planner answered; a string says why it could not."""
        self._foreseen(request, answer)
        awaited = self._awaited.pop(request, None)
        if awaited is None or self._episode is None or self._known is None or self._pacer is None:
            return
        self._awaited = {n: later for n, later in self._awaited.items() if n > request}
        problem, version, eased = awaited
        if isinstance(answer, str):
            self._no_plan(answer)
            return
        plan = paced(answer.plan, self._known.graph, problem.curves)
        if version < self.reaction.sooner:
            return  # a straggler ended meanwhile, or came among our own ranks
        if not eased:
            self._episode.normal = plan
            self._basis = {kind: curve.time_s[-1] for kind, curve in problem.curves.items()}
        self._answered, self._parked = version, False
        self._move(Signal.PLANNED)
        self._why = ""
        self._hold.start_plan()
        self._adopt(plan)
        if not answer.clock_writes and problem.time_budget_s < self._settings.planning_s:
            self._request_plan(hurry=False)  # nothing was found in a hurry

    def _no_plan(self, why: str) -> None:
        told, self._why = self._why, f"no plan could be made: {why}"
        if self._why != told:
            self.actions.append(Notice(self.name, self._why))

    def _request_plan(self, *, hurry: bool = True) -> None:
        known, writes = self._known, max(self._writes(), FEWEST_WRITES)
        assert known is not None
        urgency = URGENT_SHARE if hurry and self.reaction.waits else 1.0
        budget_s = urgency * self._settings.planning_s
        stretch = self._stretch_of(self._hold.command)
        try:
            problem = deadline_problem(
                known, self.ledger, stretch, writes, budget_s, self.reaction.slow
            )
        except PlanningError as error:
            self._no_plan(str(error))
            return
        self._requests += 1
        request = self.first_request + self._requests
        # One that grows with every iteration would else be planned for only when it no longer does:
        # what is asked for already is in time for it, and comes first.
        self._awaited[request] = Awaited(problem, self.reaction.version, self.reaction.eased)
        self.actions.append(RequestPlan(self.name, request, problem))

    def _void_requests(self) -> None:
        self._awaited.clear()
        self._hold.start_plan()

    # --- what can be told -----------------------------------------------------------------------

    @property
    def plan_in_force(self) -> PacedPlan | None:
        pacer = self._pacer
        if pacer is None or self.state not in CLOCKS_MAY_BE_LOWERED:
            return None
        return pacer.plan_for(pacer.begun)

    @property
    def deadline_s(self) -> float | None:
        """The iteration time that is aimed at."""
        baseline = self.ledger.sample("baseline")
        if baseline is None or self.state is not State.HOLD:
            return None
        makespan_s = self.ledger.makespan_s("baseline")
        longer_s = makespan_s * (self.reaction.inflation - 1)
        return baseline.mean * (1 + self._stretch_of(self._hold.command)) + longer_s

    @property
    def reason(self) -> str:
        """In words, why this job is not being slowed; empty when it is."""
        if self.state in CLOCKS_MAY_BE_LOWERED:
            return self._why
        if (obstacle := self.roster.obstacle()) is not None:
            return f"{self._why}; {obstacle}" if self.state is State.RELEASE else obstacle
        if not self.withheld and (found := self.roster.not_recurring()) is not None:
            rank, trouble = found
            return f"rank {rank}: {trouble}"
        return self._why

    # --- letting go -----------------------------------------------------------------------------

    def _pause(self) -> None:
        super()._pause()
        self._awaited.clear()

    def _lose_track(self) -> None:
        super()._lose_track()
        self._awaited.clear()

    def _start_anew(self) -> None:
        super()._start_anew()
        self._held = self._put_offs = 0
        self._eased.clear()
