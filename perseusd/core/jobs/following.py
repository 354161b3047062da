"""Following one pipeline: its members, their events, and whole iterations out of them.

Trouble, which is anything that is not understood, means full clocks at once. Nothing here does I/O:
what is to be done is left in `actions`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from perseus_hooks.events import StageEnd, StageStart

from perseusd.core.actions import Action, Notice, SetClock
from perseusd.core.events.clocklog import ClockLog
from perseusd.core.events.iterations import Assembly
from perseusd.core.events.paced import PacedPlan
from perseusd.core.events.pacing import FIRST_LATENCY_NS, Pacer, Request
from perseusd.core.events.tracking import Completed, Disorder, Ended, Progress, Started
from perseusd.core.jobs.recurrence import Recurrence
from perseusd.core.jobs.roster import Member, Roster
from perseusd.core.jobs.states import CLOCKS_MAY_BE_LOWERED, Signal, State, next_state
from perseusd.core.jobs.understanding import Episode
from perseusd.core.learned.knowledge import GpuFacts
from perseusd.core.pieces import Pieces, whole
from perseusd.core.savings.ledger import Ledger
from perseusd.core.settings import Settings

KEPT_STATES = 64
"""Changes of state that status can show."""

LOOK_NS = 20_000_000
"""Between two looks whether a rank has fallen silent."""

WAIT_SHARE = 0.008
"""Of an iteration, that its events may wait to be taken together. Clock writes are timed ahead, by
when computations began, and neither what is due is waited past, nor the moment until which the next
must be heard of (`Pacer.patience_ns`); so only what nothing foresees (work between computations)
may run at a lowered clock for so long, which slows it by a quarter at most."""

WORTH_NS = 10_000_000
"""Where that share is less, as with iterations of a second, nothing waits: what is not foreseen
comes as often there, and is answered at once."""

LEAST_WAIT_NS, MOST_WAIT_NS = 5_000_000, 50_000_000
"""Less saves nothing. More would not either, and operators' commands wait as long."""


class Followed(ABC):
    """One replica's pipeline as far as its events tell."""

    def __init__(
        self, name: str, settings: Settings, gpus: Mapping[str, GpuFacts], replica: int = 0
    ) -> None:
        self.name = self.first_replica = name
        self.replica = replica
        self.roster = Roster()
        self.ledger = Ledger()
        self.state = State.BASELINE
        self.states: list[tuple[State, int]] = [(State.BASELINE, 0)]
        self.iteration = -1
        self.first_request = 0
        """Requests count from here: answers to a job of this name before are not this one's."""
        self.writable = True
        self.withheld = ""
        """Why not, where it is this job's clocks alone that are not to be written."""
        self.node_gpus = 0
        """GPUs of this node that jobs hold: their clock writes wait for each other."""
        self.actions: list[Action] = []
        self._settings = settings
        self._gpus = gpus
        self._why = "waiting for the first iterations"
        self._logs: dict[str, ClockLog] = {}
        self._insisted: set[str] = set()
        """GPUs that are locked at their top clock where others are reset."""
        self._episode: Episode | None = None
        self._counts_anew = True
        self._latency_ns: float = FIRST_LATENCY_NS
        """Of a clock write, as last measured on this node."""
        self.patient = False
        """Whether what whole iterations tell may be worked out a piece at each tick, where nothing
        waits for it; else it is at once."""
        self._to_think_of: Episode | None = None
        """The episode of which another iteration is whole."""
        self._thoughts: Pieces[None] | None = None
        """What is being worked out."""
        self._look_ns = 0
        """When it is looked again whether a rank has fallen silent."""
        self._events_wait_ns = 0

    def reconfigure(self, settings: Settings) -> None:
        """From now on these settings hold."""
        self._settings = settings

    @abstractmethod
    def _whole(self, episode: Episode) -> Pieces[None]:
        """Another iteration of every rank is whole, the newest of `episode.early`."""

    @abstractmethod
    def _straggling_scale(self) -> float:
        """How many times the baseline's iteration time stragglers make it."""

    # --- who takes part -------------------------------------------------------------------------

    def gpu_here(self, facts: GpuFacts) -> None:
        """For a rank that comes later, as one does that was refused while its GPU was not here; a
        GPU that a rank uses stays what it was."""
        if facts.uuid not in self.roster.all_gpus():
            self._gpus = {**self._gpus, facts.uuid: facts}

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
        for uuid in set(self._logs) - set(self.roster.all_gpus()):
            del self._logs[uuid]  # its reset is another one's to hear of
            self._insisted.discard(uuid)

    # --- what is reported -----------------------------------------------------------------------

    def stage_event(self, client: str, event: StageStart | StageEnd, now_ns: int) -> None:
        member = self.roster.members[client]
        lost = 0 < member.sequence < event.sequence - 1
        member.sequence, member.heard_ns = event.sequence, now_ns
        stage = member.hello.stage
        if stage is None or self.roster.leader(stage) is not member:
            return
        unknown = member.track.order is None
        progress = member.track.lost_events() if lost else []
        if isinstance(event, StageStart):
            progress += self._foreign(stage, event) or member.track.start(event)
            if event.instruction == "other" and (pacer := self._pacer) is not None:
                self._ask(pacer.uncovered(stage))
        else:
            progress += member.track.end(event)
        if unknown:
            self._compare(member, event, progress, lost=lost)
        for step in progress:
            self._progress(stage, member, step)

    @staticmethod
    def _compare(
        member: Member, event: StageStart | StageEnd, progress: list[Progress], *, lost: bool
    ) -> None:
        """What its iterations are like, until they are understood."""
        if member.track.order is None:
            member.recurrence.heard(event, progress, lost=lost)
        else:
            member.recurrence = Recurrence()

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

    def _progress(self, stage: int, member: Member, step: Progress) -> None:
        match step:
            case Started():
                self._started(stage, member, step)
            case Ended(number, position, time_ns):
                if (pacer := self._pacer) is not None:
                    number = self._common(stage, member, number)
                    self._ask(pacer.ended(stage, number, position, time_ns))
            case Completed():
                self._completed(stage, member, step)
            case Disorder(why):
                self._trouble(f"rank {member.hello.rank}: {why}")
                self._lose_track()

    def _started(self, stage: int, member: Member, step: Started) -> None:
        number = self._common(stage, member, step.number)
        self.iteration = number if self._counts_anew else max(self.iteration, number)
        self._counts_anew = False
        if (pacer := self._pacer) is None:
            return
        if number > pacer.begun and (behind := pacer.behind(number)) is not None:
            self._left_behind(behind, number)
        else:
            self._ask(pacer.started(stage, number, step.position, step.time_ns))

    def _left_behind(self, stage: int, number: int) -> None:
        """A rank's events have stopped and training goes on: its clock would stay as it is."""
        leader = self.roster.leader(stage)
        rank = leader.hello.rank if leader is not None else None
        self._trouble(f"rank {rank} has been silent, and others are in iteration {number}")
        self._lose_track()

    def _common(self, stage: int, member: Member, number: int) -> int:
        """An iteration's number as all ranks count: a rank that counts for itself may differ."""
        offsets = self._episode.assembly.offsets if self._episode is not None else None
        return number if offsets is None or not member.track.counted else number + offsets[stage]

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
        episode.whole = iteration.number
        self._events_wait_ns = int(WAIT_SHARE * 1e9 * (self.ledger.typical_time_s() or 0.0))
        self._to_think_of = episode

    def think(self) -> None:
        """Work out what whole iterations tell: that takes a while, and their clocks go first.

        Called after every event.
        """
        episode, self._to_think_of = self._to_think_of, None
        if episode is not None:
            self._think_to_the_end()
            if episode is self._episode:
                self._thoughts = self._whole(episode)
                if not self._takes_its_time:
                    self._think_to_the_end()

    def think_on(self) -> None:
        """A piece of what is left to be worked out. Called at every tick of a patient job."""
        if self._thoughts is not None:
            thoughts = self._thoughts
            for _ in thoughts:
                return
            if thoughts is self._thoughts:
                self._thoughts = None

    @property
    def _takes_its_time(self) -> bool:
        """Where no plan is held yet, the next iteration is to run by what this one tells."""
        return self.patient and self.state is State.HOLD

    def _think_to_the_end(self) -> None:
        thoughts, self._thoughts = self._thoughts, None
        if thoughts is not None:
            whole(thoughts)

    @property
    def thinking(self) -> bool:
        """Whether anything is left to be worked out."""
        return self._thoughts is not None

    def written(self, uuid: str, clock_mhz: int | None, asked_ns: int, end_ns: int) -> None:
        """A clock write was done."""
        if uuid in self._logs:
            self._logs[uuid].written(end_ns, clock_mhz)
        if (pacer := self._pacer) is not None:
            pacer.measured((end_ns - asked_ns) * 1e-9)
            self._latency_ns = pacer.latency_ns

    # --- time -----------------------------------------------------------------------------------

    def tick(self, now_ns: int) -> None:
        """Do what is due; let go of a job that has fallen silent."""
        if self.state not in CLOCKS_MAY_BE_LOWERED:
            return
        if (pacer := self._pacer) is not None:
            due_ns = pacer.next_due_ns()
            if due_ns is not None and due_ns <= now_ns:
                self._ask(pacer.due(now_ns))
        if now_ns >= self._look_ns:
            self._look_ns = now_ns + LOOK_NS
            self._look_for_silence(now_ns)

    def _look_for_silence(self, now_ns: int) -> None:
        limit_ns = self.silence_limit_s() * 1e9
        for member in self.roster.members.values():
            member.heard_ns = member.heard_ns or now_ns
            if now_ns - member.heard_ns > limit_ns:
                silent = f"has been silent for more than {limit_ns * 1e-9:.1f} s"
                self._trouble(f"rank {member.hello.rank} {silent}")
                self._lose_track()
                return

    def silence_limit_s(self) -> float:
        usual = (self.ledger.typical_time_s() or 0.0) * self._straggling_scale()
        return max(self._settings.silence_iterations * usual, self._settings.silence_s)

    def events_wait_ns(self, now_ns: int) -> int:
        """For how long this job's events may wait, so that several are taken together."""
        if self._events_wait_ns < WORTH_NS or self.state is State.LEARN:
            return 0
        if (pacer := self._pacer) is None:
            return 0
        wait_ns = int(min(self._events_wait_ns, pacer.patience_ns(now_ns), MOST_WAIT_NS))
        return wait_ns if wait_ns >= LEAST_WAIT_NS else 0

    def next_due_ns(self) -> int | None:
        return pacer.next_due_ns() if (pacer := self._pacer) is not None else None

    # --- letting go -----------------------------------------------------------------------------

    def release(self, why: str) -> None:
        """Full clocks now, whatever the state; the ranks are followed all the same."""
        self._trouble(why)
        self._pause()
        if (episode := self._episode) is not None and episode.pacer is not None:
            # The present iteration, or the next one: it begins as clocks go up.
            episode.lowered_until = max(episode.pacer.begun, episode.whole + 1)

    def taken_up(self, withheld: str) -> None:
        """What its clocks were withheld for is over: no reason any more, while iterations pass."""
        if self._why == withheld:
            self._why = "measuring the baseline: its clocks were kept full until now"

    def relearn(self, why: str) -> None:
        """Full clocks now, and everything is measured and learned anew."""
        self._trouble(why)
        self._forget()

    def _trouble(self, why: str) -> None:
        """Full clocks first, think later."""
        lowered = self.state in CLOCKS_MAY_BE_LOWERED
        if lowered and (episode := self._episode) is not None and episode.pacer is not None:
            episode.lowered_until = episode.pacer.begun
        self._move(Signal.TROUBLE, why)
        self._why = why
        if lowered:
            self.actions += [SetClock(u, self._full(u)) for u in self.roster.all_gpus()]

    def _pause(self) -> None:
        """No plan from now on; what may come back is kept."""
        if (episode := self._episode) is not None:
            episode.clear, episode.normal = 0, None
            if episode.pacer is not None:
                episode.pacer.reset()

    def _lose_track(self) -> None:
        """The ranks' orders have to be understood anew; what was learned of them may still hold."""
        self._episode = None
        self._counts_anew = True  # a trainer that numbers each epoch anew
        self.ledger.interrupt()
        for member in self.roster.members.values():
            member.track.restart()

    def _forget(self) -> None:
        """The job's members changed: everything is learned anew."""
        self._lose_track()
        self._thoughts = None  # they are about the job as it was
        self.ledger.clear()

    def _move(self, signal: Signal, why: str = "") -> None:
        state = next_state(self.state, signal)
        if state is not self.state:
            told = f"{self.state} → {state}" + (f": {why}" if why else "")
            self.actions.append(Notice(self.name, told, state=state, why=why))
            self.states.append((state, self.iteration + 1))
            del self.states[:-KEPT_STATES]
        self.state = state

    # --- clocks ---------------------------------------------------------------------------------

    @property
    def _pacer(self) -> Pacer | None:
        return self._episode.pacer if self._episode is not None else None

    def _adopt(self, plan: PacedPlan | None, *, at_once: bool = False) -> None:
        """From the next iteration on, or from the next computation on where there is no time."""
        pacer = self._pacer
        assert pacer is not None
        pacer.adopt(plan, pacer.begun if at_once else pacer.begun + 1)
        if at_once:
            self._ask(pacer.hasten())

    def _ask(self, requests: Sequence[Request]) -> None:
        if self.state in CLOCKS_MAY_BE_LOWERED:
            for request in requests:
                for uuid in self.roster.gpus(request.rank):
                    clock_mhz = request.clock_mhz
                    full = clock_mhz is None
                    self.actions.append(SetClock(uuid, self._full(uuid) if full else clock_mhz))

    def _full(self, uuid: str) -> int | None:
        """How full clock is asked for: a reset, unless that was seen to do nothing."""
        return self._gpus[uuid].top_mhz if uuid in self._insisted else None

    def _insist(self, rank: int) -> None:
        """A rank is slow at what should be full clock: perhaps a reset has done nothing."""
        for uuid in self.roster.gpus(rank):
            if uuid not in self._insisted:
                self._insisted.add(uuid)
                self.actions.append(SetClock(uuid, self._full(uuid)))
