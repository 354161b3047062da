"""One pipeline under the daemon's care: its members, its state, and what to do next.

It reads downward: members join, their events make iterations, iterations make knowledge, and at
each iteration's end `_decide` asks what the present state asks for: wait, try clocks, plan, correct
the plan, or let go. Nothing here does I/O: what is to be done is left in `actions`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from perseus_hooks.events import StageEnd, StageStart

from perseusd.core.actions import Action, Notice, RequestPlan, SetClock
from perseusd.core.announced import AnnouncedStraggler
from perseusd.core.clocklog import ClockLog
from perseusd.core.deadline import FEWEST_WRITES, URGENT_SHARE, deadline_problem, most_writes
from perseusd.core.hold import HoldControl
from perseusd.core.iterations import Assembly, JobIteration, alike, observed_pipeline
from perseusd.core.knowledge import GpuFacts
from perseusd.core.ledger import Ledger, Record
from perseusd.core.model import PlanResult, Problem
from perseusd.core.pacing import PacedPlan, Pacer, Request, paced
from perseusd.core.roster import Member, Roster
from perseusd.core.settings import Settings
from perseusd.core.states import CLOCKS_MAY_BE_LOWERED, Signal, State, next_state
from perseusd.core.tracking import Completed, Disorder, Ended, Progress, Started
from perseusd.core.understanding import Episode, Understanding
from perseusd.errors import PlanningError

CLEAR_ITERATIONS = 2
"""Understood iterations at full clock after which a released job starts again."""

MOST_CLEAR_ITERATIONS = 500
"""The longest wait after breaches: a job that stays for days is tried again some day."""

WRITES_PER_WINDOW = 2
"""Of a trial: down and up."""

CHANGED = 0.01
"""Relative change of the baseline's iteration time, beyond noise, that makes a job another one."""

KEPT_STATES = 64
"""Changes of state that status can show."""


class Job:
    """One replica's pipeline."""

    def __init__(self, name: str, settings: Settings, gpus: Mapping[str, GpuFacts]) -> None:
        self.name = name
        self.roster = Roster()
        self.ledger = Ledger()
        self.state = State.BASELINE
        self.states: list[tuple[State, int]] = [(State.BASELINE, 0)]
        self.iteration = -1
        self.straggler = AnnouncedStraggler()
        self.writable = True
        self.actions: list[Action] = []
        self._settings = settings
        self._gpus = gpus
        self._why = "waiting for the first iterations"
        self._logs: dict[str, ClockLog] = {}
        self._hold = HoldControl(settings.slowdown_budget)
        self._known: Understanding | None = None
        self._episode: Episode | None = None
        self._requests = 0
        self._breaches = 0
        self._doubted_s: float | None = None
        """The baseline's iteration time before the last breach, until it is measured again."""
        self._awaited: dict[int, tuple[Problem, float | None]] = {}

    # --- who takes part ---------------------------------------------------------------------

    def join(self, member: Member) -> None:
        """A process said hello, perhaps again."""
        known = self.roster.members.get(member.client)
        if known is not None and known.hello == member.hello:
            return
        if self.state is not State.BASELINE:
            self._trouble(f"rank {member.hello.rank} joined")
        self.roster.add(member)
        for uuid in member.gpus:
            self._logs.setdefault(uuid, ClockLog(self._gpus[uuid].top_mhz))
        self._forget()

    def leave(self, client: str, why: str) -> None:
        """A process is gone: its GPUs' clocks and all others' go to full."""
        member = self.roster.members.get(client)
        if member is None:
            return
        self._trouble(f"rank {member.hello.rank} {why}")
        self.roster.remove(client)
        self._forget()

    # --- what is reported -------------------------------------------------------------------

    def stage_event(self, client: str, event: StageStart | StageEnd, now_ns: int) -> None:
        member = self.roster.members[client]
        lost = 0 < member.sequence < event.sequence - 1
        member.sequence, member.heard_ns = event.sequence, now_ns
        stage = member.hello.stage
        if stage is None or not self.roster.leads(member):
            return
        progress = member.track.lost_events() if lost else []
        if isinstance(event, StageStart):
            progress += self._foreign(stage, event) or member.track.start(event)
            if event.instruction == "other" and (pacer := self._pacer) is not None:
                self._ask(pacer.uncovered(stage))
        else:
            progress += member.track.end(event)
        for step in progress:
            self._progress(stage, member, step)

    @staticmethod
    def _foreign(stage: int, event: StageStart) -> list[Progress]:
        if event.stage in (None, stage):
            return []
        return [
            Disorder(
                f"a computation of stage {event.stage} came from stage {stage}: several stages of "
                "one process are told apart with chunk="
            )
        ]

    def reading(self, uuid: str, time_ns: int, energy_j: float) -> None:
        """The energy counter of one of this job's GPUs was read."""
        self.ledger.poll(uuid, time_ns, energy_j)
        if self._known is not None:
            self._known.poll_counter(uuid, time_ns, energy_j)

    def written(self, uuid: str, clock_mhz: int | None, asked_ns: int, end_ns: int) -> None:
        """A clock write was done."""
        if uuid in self._logs:
            self._logs[uuid].written(end_ns, clock_mhz)
        if (pacer := self._pacer) is not None:
            pacer.measured((end_ns - asked_ns) * 1e-9)

    def _progress(self, stage: int, member: Member, step: Progress) -> None:
        pacer = self._pacer
        match step:
            case Started(number, position, time_ns):
                number = self._common(stage, member, number)
                self.iteration = max(self.iteration, number)
                if pacer is not None:
                    self._ask(pacer.started(stage, number, position, time_ns))
            case Ended(number, position, time_ns):
                if pacer is not None:
                    number = self._common(stage, member, number)
                    self._ask(pacer.ended(stage, number, position, time_ns))
            case Completed():
                self._completed(stage, member, step)
            case Disorder(why):
                self._trouble(f"rank {member.hello.rank}: {why}")
                self._lose_track()

    def _common(self, stage: int, member: Member, number: int) -> int:
        """An iteration's number as all ranks count: a rank that counts for itself may differ."""
        offsets = self._episode.assembly.offsets if self._episode is not None else None
        return number if offsets is None or not member.track.counted else number + offsets[stage]

    # --- time -------------------------------------------------------------------------------

    def tick(self, now_ns: int) -> None:
        """Do what is due; let go of a job that has fallen silent."""
        if self.straggler.expired(now_ns):
            self.announce_straggler(None)
        if self.state not in CLOCKS_MAY_BE_LOWERED:
            return
        if (pacer := self._pacer) is not None:
            self._ask(pacer.due(now_ns))
        limit_ns = self.silence_limit_s() * 1e9
        for member in self.roster.members.values():
            member.heard_ns = member.heard_ns or now_ns
            if now_ns - member.heard_ns > limit_ns:
                silent = f"has been silent for more than {limit_ns * 1e-9:.1f} s"
                self._trouble(f"rank {member.hello.rank} {silent}")
                self._lose_track()
                return

    def silence_limit_s(self) -> float:
        usual = self.ledger.typical_time_s() or 0.0
        if self.straggler.factor is not None:
            usual *= self.straggler.factor
        return max(self._settings.silence_iterations * usual, self._settings.silence_s)

    def next_due_ns(self) -> int | None:
        return pacer.next_due_ns() if (pacer := self._pacer) is not None else None

    # --- stragglers -------------------------------------------------------------------------

    def announce_straggler(self, factor: float | None) -> None:
        """Another replica takes `factor` times this one's full-clock iteration; None: no more."""
        before = self.straggler.factor or 1.0
        self.straggler.announce(factor)
        if self.state is not State.HOLD or self._episode is None:
            return
        if (factor or 1.0) < before:  # there is less time now: the normal plan until a new one
            self._awaited.clear()
            self._hold.start_plan()
            self._adopt(self._episode.normal)
        if factor is not None or self._episode.normal is None:
            self._request_plan()

    def _check_straggler(self, finished: Record) -> None:
        """Behind a straggler a job waits; once it does not, the announcement is out of date."""
        baseline = self.ledger.sample("baseline")
        if baseline is None or self.state is not State.HOLD:
            return
        waited_s = finished.time_s - finished.makespan_s - self.ledger.usual_gap_s()
        if not self.straggler.waited(waited_s, baseline.mean):
            return
        if self.straggler.believed:
            self._request_plan()
        else:
            self.actions.append(Notice(self.name, "nobody is waited for: no straggler any more"))
            self.announce_straggler(None)

    def _stretch(self) -> float:
        """Relative to the baseline's iteration time, how much later the deadline is."""
        command = self._hold.command
        return command if self.straggler.factor is None else max(command, self.straggler.stretch)

    # --- iterations become knowledge --------------------------------------------------------

    def _completed(self, stage: int, member: Member, step: Completed) -> None:
        if self.roster.obstacle() is not None or self.roster.stages is None:
            return
        if self._episode is None:
            self._episode = Episode(Assembly(self.roster.stages))
        episode = self._episode
        iteration = episode.assembly.add(stage, step.iteration, member.track.counted)
        if iteration is None:
            return
        episode.early.append(iteration)
        if episode.pacer is None and not self._understand(episode):
            return
        early, episode.early = episode.early, []
        for whole in early:
            self._learn_from(whole, episode)
        self._decide(episode)

    def _understand(self, episode: Episode) -> bool:
        """Once every rank's order is known: the pipeline, and what is (still) known of it."""
        episode.early = episode.early[-self._settings.baseline_iterations - 1 :]
        leaders = [self.roster.leader(s) for s in range(episode.assembly.ranks)]
        if any(m is None or m.track.order is None for m in leaders):
            self._why = "the order of its computations is not understood yet"
            return False
        if len(episode.early) < 2:
            return False
        episode.early = alike(episode.early[1:])  # the first iteration warms up
        try:
            seen = observed_pipeline(episode.early, self.roster.schedule)
        except PlanningError as error:
            self._why = f"the order of its computations cannot be planned: {error}"
            self._episode = None
            return False
        if self._known is None or seen.orders != self._known.pipeline.orders:
            gpus = {s: self._gpus[self.roster.gpus(s)[0]] for s in range(seen.ranks)}
            self._known = Understanding(seen, gpus, self._settings)
            self.ledger.clear()
            self._hold = HoldControl(self._budget())
        episode.pacer = Pacer(seen.ranks)
        return True

    def _learn_from(self, iteration: JobIteration, episode: Episode) -> None:
        assert self._known is not None
        self._known.learn_from(iteration, episode.ends, self._logs)
        phase = self._phase(iteration, episode)
        finished = self.ledger.iteration(iteration, phase, self.roster.all_gpus())
        if finished is None:
            return
        if finished.phase == State.HOLD:
            self._hold.iteration(finished.time_s)
        elif finished.phase == "straggler":
            self._check_straggler(finished)

    def _phase(self, iteration: JobIteration, episode: Episode) -> str:
        """What the iteration counts for: a state, a straggler's doing, or a change of plans."""
        was_slowed, now_slowed = episode.slowed_by_straggler, self.straggler.factor is not None
        episode.slowed_by_straggler = now_slowed
        if was_slowed or now_slowed:
            return "straggler"
        assert episode.pacer is not None
        planned = episode.pacer.plan_for(iteration.number)
        if self.state is State.HOLD and planned is not episode.normal:
            return "change"
        return self.state.value

    # --- decisions, at each iteration's end -------------------------------------------------

    def _decide(self, episode: Episode) -> None:
        match self.state:
            case State.BASELINE:
                self._decide_baseline(episode)
            case State.LEARN:
                self._decide_learn(episode)
            case State.HOLD:
                self._decide_hold(episode)
            case State.RELEASE:
                episode.clear += 1
                if episode.clear >= self._clear_iterations():
                    self._move(Signal.CLEAR)
                    self._decide_baseline(episode)

    def _clear_iterations(self) -> int:
        """Longer after every breach: a plan that keeps failing this job is not tried at once."""
        longer = 1 << 2 * min(self._breaches, 8)
        return min(CLEAR_ITERATIONS * longer, MOST_CLEAR_ITERATIONS)

    def _decide_baseline(self, episode: Episode) -> None:
        measured, wanted = self.ledger.count("baseline"), self._settings.baseline_iterations
        if self._settings.observe:
            self._why = "observe-only mode: no clock is ever written"
        elif not self.writable:
            self._why = "no clock can be written: perseusd-clock is not there"
        elif measured < wanted:
            self._why = f"measuring the baseline: {measured} of {wanted} iterations"
        elif self._has_changed():
            self._forget()
            self._why = "the job has changed: it is measured and learned anew"
        elif self._writes() < FEWEST_WRITES:
            self._why = (
                "its iterations are too short: within [limits] max_writes_per_s and "
                "max_node_write_share, not even one lower clock and back fits into one"
            )
        else:
            self._move(Signal.MEASURED)
            self._why = ""
            self._decide_learn(episode)

    def _has_changed(self) -> bool:
        """Whether the baseline measured after a breach is another than before."""
        before_s, self._doubted_s = self._doubted_s, None
        baseline = self.ledger.sample("baseline")
        if before_s is None or baseline is None:
            return False
        noise = 2 * math.sqrt(baseline.relative_variance_of_mean())
        return abs(baseline.mean / before_s - 1) > CHANGED + noise

    def _writes(self) -> int:
        """Clock writes that an iteration has room for, per GPU."""
        pacer, usual_s = self._pacer, self.ledger.typical_time_s()
        if pacer is None or usual_s is None:
            return 0
        gpus = len(self.roster.all_gpus())
        return most_writes(self._settings, usual_s, pacer.latency_ns * 1e-9, gpus)

    def _decide_learn(self, episode: Episode) -> None:
        known = self._known
        assert known is not None
        exhausted = known.explorer.iterations >= self._settings.max_learning_iterations
        try:
            if known.explorer.done(known.knowledge) or exhausted:
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

    def _decide_hold(self, episode: Episode) -> None:
        if self.straggler.factor is not None:
            return
        baseline = self.ledger.sample("baseline")
        assert baseline is not None
        if self._hold.breached(baseline):
            seen = self._hold.story(baseline)
            self._trouble(f"iterations were slower than the slowdown budget allows: {seen}")
            self._lose_track()
            self._hold.be_cautious()
            self._breaches += 1
            # Is it us, or has the job changed? Measure again.
            self._doubted_s = baseline.mean
            self.ledger.drop("baseline")
            self.ledger.drop("hold")
        elif self._hold.outgrown(baseline):
            self._trouble(f"the job became faster: {self._hold.story(baseline)}")
            self._forget()
        elif self._awaited:
            return
        elif episode.normal is None or self._hold.wants_plan(baseline):
            self._request_plan()

    # --- plans ------------------------------------------------------------------------------

    def planned(self, request: int, answer: PlanResult | str) -> None:
        """The planner answered; a string says why it could not."""
        awaited = self._awaited.pop(request, None)
        if awaited is None or self._episode is None or self._known is None:
            return
        problem, factor = awaited
        if isinstance(answer, str):
            self._no_plan(answer)
            return
        plan = paced(answer.plan, self._known.graph, problem.curves)
        if factor is None:
            self._episode.normal = plan
        if factor != self.straggler.factor:
            return  # the straggler came or went meanwhile
        self._move(Signal.PLANNED)
        self._why = ""
        self._hold.start_plan()
        self._adopt(plan)

    def _no_plan(self, why: str) -> None:
        told, self._why = self._why, f"no plan could be made: {why}"
        if self._why != told:
            self.actions.append(Notice(self.name, self._why))

    def _request_plan(self) -> None:
        known, writes = self._known, max(self._writes(), FEWEST_WRITES)
        assert known is not None
        urgency = URGENT_SHARE if self.straggler.factor is not None else 1.0
        stretch = self._stretch()
        try:
            problem = deadline_problem(
                known, self.ledger, stretch, writes, urgency * self._settings.planning_s
            )
        except PlanningError as error:
            self._no_plan(str(error))
            return
        self._requests += 1
        self._awaited = {self._requests: (problem, self.straggler.factor)}
        self.actions.append(RequestPlan(self.name, self._requests, problem))

    def _adopt(self, plan: PacedPlan | None) -> None:
        pacer = self._pacer
        assert pacer is not None
        pacer.adopt(plan, pacer.begun + 1)

    # --- what can be told -------------------------------------------------------------------

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
        return baseline.mean * (1 + self._stretch())

    @property
    def reason(self) -> str:
        """In words, why this job is not being slowed; empty when it is."""
        obstacle = self.roster.obstacle()
        if self.state in CLOCKS_MAY_BE_LOWERED or obstacle is None:
            return self._why
        return f"{self._why}; {obstacle}" if self.state is State.RELEASE else obstacle

    def critical_path(self) -> Sequence[tuple[int, float]]:
        """(stage, its share of the predicted critical path) under the plan in force."""
        plan = self.plan_in_force
        return self._known.critical_shares(plan) if plan and self._known else ()

    # --- letting go -------------------------------------------------------------------------

    def release(self, why: str) -> None:
        """Full clocks now, whatever the state, and understand it anew."""
        self._trouble(why)
        self._lose_track()

    def _trouble(self, why: str) -> None:
        """Full clocks first, think later."""
        lowered = self.state in CLOCKS_MAY_BE_LOWERED
        self._move(Signal.TROUBLE)
        self._why = why
        if lowered:
            self.actions += [SetClock(uuid, None) for uuid in self.roster.all_gpus()]
            self.actions.append(Notice(self.name, f"released: {why}"))

    def _lose_track(self) -> None:
        """The ranks' orders have to be understood anew; what was learned of them may still hold."""
        self._episode = None
        self._awaited.clear()
        self.ledger.interrupt()
        for member in self.roster.members.values():
            member.track.restart()

    def _forget(self) -> None:
        """The job's members changed: everything is learned anew."""
        self._lose_track()
        self._known = None
        self.ledger.clear()
        self._hold = HoldControl(self._budget())
        self._breaches = 0

    def _budget(self) -> float:
        """How much longer iterations may get: the job's own word, else the configuration's."""
        told = [m.hello.slowdown_budget for m in self.roster.members.values()]
        given = [budget for budget in told if budget is not None]
        return min(given, default=self._settings.slowdown_budget)

    def _move(self, signal: Signal) -> None:
        state = next_state(self.state, signal)
        if state is not self.state:
            self.actions.append(Notice(self.name, f"{self.state} → {state}"))
            self.states.append((state, self.iteration + 1))
            del self.states[:-KEPT_STATES]
        self.state = state

    @property
    def _pacer(self) -> Pacer | None:
        return self._episode.pacer if self._episode is not None else None

    def _ask(self, requests: Sequence[Request]) -> None:
        if self.state in CLOCKS_MAY_BE_LOWERED:
            for request in requests:
                for uuid in self.roster.gpus(request.rank):
                    self.actions.append(SetClock(uuid, request.clock_mhz))
