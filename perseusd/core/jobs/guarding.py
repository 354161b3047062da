"""One pipeline under guard: never more than three iterations in a row over the limit because of us.

What lowered clocks cost is looked at when an iteration's last computation ends. Where it is the
plan, clocks are full until another is there. Where it is not understood, clocks are full
until the baseline has been measured anew, and what was learned is kept as far as it still holds.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection, Mapping

from perseusd.core.actions import Notice
from perseusd.core.events.iterations import JobIteration, observed_pipeline
from perseusd.core.events.paced import PacedPlan
from perseusd.core.jobs.doubt import Doubt
from perseusd.core.jobs.guard import Breach, Guard
from perseusd.core.jobs.hold import HoldControl
from perseusd.core.jobs.reacting import ELSEWHERE, Reacting
from perseusd.core.jobs.reaction import CAUTION, Change
from perseusd.core.jobs.states import CLOCKS_MAY_BE_LOWERED, Signal, State
from perseusd.core.jobs.understanding import Understanding
from perseusd.core.learned.knowledge import GpuFacts
from perseusd.core.model import Kind
from perseusd.core.savings.ledger import Record
from perseusd.core.settings import Settings
from perseusd.errors import PlanningError

GUARDED = frozenset({"hold", "change", "straggler", "learn"})
"""Phases in which clocks may be lowered."""

MOST_TIGHTENED = 3
"""Plans in a row that proved too slow, each tighter; then the job is let go of."""

QUIETED = 0.1
"""Of one trouble, that every held iteration makes up for."""

ACQUITTED = 200
"""Held iterations for which waiting that grows is no breach, once it was seen at full clock too."""

MOST_CLEAR_ITERATIONS = 500
"""The longest wait after trouble: a job that stays for days is tried again some day."""


class Guarding(Reacting):
    """One replica's pipeline, whose iterations must not be slowed by more than allowed."""

    def __init__(
        self, name: str, settings: Settings, gpus: Mapping[str, GpuFacts], replica: int = 0
    ) -> None:
        super().__init__(name, settings, gpus, replica)
        self._hold = HoldControl(settings.slowdown_budget)
        self._guard = Guard(settings.slowdown_budget)
        self._doubt: Doubt | None = None
        self._basis: Mapping[Kind, float] = {}
        """What each kind took at full clock when it was last planned on."""
        self._resumable: PacedPlan | None = None
        """The normal plan before the last trouble, which may go on once that is over."""
        self._tightened = 0
        self._parked = False
        """Whether clocks are full until another plan is there."""
        self._excusable = False
        """Whether it was a breach that released the job, and no other trouble came since."""
        self._breaches = 0
        self._waiting = 0
        """Baseline iterations more than usual: plans that keep failing are not tried at once."""
        self._unrest = 0.0
        """Recent troubles."""
        self._acquitted = 0
        """Held iterations for which waiting is known not to be our doing."""

    @abstractmethod
    def _resume(self, plan: PacedPlan | None) -> None:
        """From baseline to hold under a plan that was in force before; None: plan anew."""

    # --- what is seen ---------------------------------------------------------------------------

    def _ended(self, iteration: JobIteration, phase: str) -> None:
        if phase in GUARDED:
            if self.state in CLOCKS_MAY_BE_LOWERED:
                self._look(iteration)
            if self.patient and self.state is State.HOLD:
                self._guarded()  # what else is to be thought of may take a while
        elif self._doubt is not None and phase in (State.BASELINE, State.RELEASE):
            episode = self._episode
            if episode is None or iteration.number > episode.lowered_until:
                self._doubt.add(iteration)
                self._free_stuck_clocks()

    def _look(self, iteration: JobIteration) -> None:
        baseline, known = self.ledger.sample("baseline"), self._known
        if baseline is None or known is None:
            return
        makespan_s = (iteration.end_ns - iteration.start_ns) * 1e-9
        usual_s = self.ledger.makespan_s("baseline")
        slow = self.reaction.slow
        now = {rank: max(factor, known.newest_pace(rank)) for rank, factor in slow.items()}
        until_s = max(self.reaction.until_s(baseline.mean, usual_s), usual_s * known.inflation(now))
        if baseline.mean <= 0 or until_s <= 0:
            return
        full_s = makespan_s - known.ours_s
        lost_s = known.ours_s - max(0.0, until_s - full_s)
        whole_s = max(full_s, until_s) + self.ledger.usual_gap_s()
        lost = lost_s / max(whole_s, baseline.mean)
        # Behind others a pipeline may well be early; for itself it is expected to take as long.
        early = 0.0 if self.reaction.waits else full_s / until_s - 1
        self._guard.ended(lost, makespan_s / until_s - 1, early)

    def _lasted(self, finished: Record) -> None:
        """An iteration under a plan is over: the waiting at its end is known too."""
        baseline, reaction = self.ledger.sample("baseline"), self.reaction
        if baseline is None or baseline.mean <= 0:
            return
        usual_s = self.ledger.makespan_s("baseline")
        known_s = max(reaction.until_s(baseline.mean, usual_s), reaction.newest_s)
        waited_s = finished.time_s - max(finished.makespan_s, known_s)
        usually_s = baseline.mean - max(usual_s, min(reaction.others_s, baseline.mean))
        self._guard.lasted((waited_s - usually_s) / baseline.mean)

    # --- what is done ---------------------------------------------------------------------------

    def _guarded(self) -> bool:
        """After an iteration with lowered clocks: whether clocks went up."""
        baseline = self.ledger.sample("baseline")
        if baseline is None:
            return False
        breach = self._guard.breach(self.ledger.makespans("baseline"), baseline)
        if breach is None or (breach is Breach.WAITING and self._acquitted):
            return False
        lost = self._guard.ours
        if breach is Breach.OURS:
            self._distrust()
        if breach is not Breach.OURS or self._tightened >= MOST_TIGHTENED:
            self._doubt_all(breach, lost)
        elif self.state is State.LEARN:
            self._guard.tightened()
            self._adopt(None, at_once=True)  # a rest: the next trial knows more
        else:
            self._tighten(lost)
        return True

    def _tighten(self, lost: float) -> None:
        """The plan costs more than it said: full clocks until another is there."""
        self._tightened += 1
        told = f"the plan made iterations {100 * lost:.2f} % longer"
        self.actions.append(Notice(self.name, f"{told}: full clocks until there is another"))
        self._void_requests()
        self._parked = True
        if not self.reaction.eased and self._episode is not None:
            self._episode.normal = None  # nothing may bring it back
        self._guard.clear()
        self._adopt(None, at_once=True)
        if self._tightened > 1:  # what was learned since the last plan was not enough
            if self.reaction.eased:
                self.reaction.be_cautious(lost)
            else:
                self._hold.be_cautious(lost - self._hold.aim)
        self._request_plan()

    def _doubt_all(self, breach: Breach, lost: float = 0.0) -> None:
        """Is it us, or has the job changed? Full clocks, and measure again."""
        plan = self._episode.normal if self._episode is not None else None
        tightened, self._tightened = self._tightened, 0
        self._trouble(breach.value + _modelled(breach, lost))
        self._excusable = True
        self._void_requests()
        self._pause()
        self._resumable = plan if not tightened else None
        reckoned = {*self.reaction.slow, *([ELSEWHERE] if self.reaction.waits else [])}
        aside = self.ledger.set_aside("baseline")
        self._doubt = Doubt(breach, self._basis, aside, reckoned)
        self.ledger.drop("hold")
        self.ledger.interrupt()

    def _judged(self) -> bool:
        """The baseline is measured again: whether the job is the one that was known."""
        doubt, baseline, known = self._doubt, self.ledger.sample("baseline"), self._known
        if doubt is None or baseline is None or known is None:
            return True
        self._doubt = None
        if doubt.changed(known.knowledge.noise()):
            return False
        if doubt.relinked(self.ledger.makespans("baseline")) and not self._relink(doubt, known):
            return False
        if doubt.breach is not Breach.FASTER and doubt.ours(baseline):
            self._breaches += 1
            self._hold.be_cautious()
            self._resumable = None
            if self._breaches > 1:
                self._waiting = min(2 << 2 * min(self._breaches - 1, 8), MOST_CLEAR_ITERATIONS)
        elif doubt.breach is Breach.WAITING:
            self._acquitted = ACQUITTED
        return True

    def _relink(self, doubt: Doubt, known: Understanding) -> bool:
        """Communication takes another time, say: the pipeline as it is now, for another plan."""
        self._resumable = None
        try:
            known.relink(observed_pipeline(doubt.iterations, self.roster.schedule))
        except PlanningError:
            return False
        return True

    def _explained(self, by: Collection[int]) -> None:
        """A straggler made the iterations long: the baseline and what is known hold."""
        doubt = self._doubt
        unfit = self._pacer is None or self.roster.obstacle() is not None
        if doubt is None or doubt.breach is Breach.FASTER or unfit or not self._excusable:
            return
        if not set(by) - set(doubt.reckoned):
            return
        if self.state is State.RELEASE:
            self._move(Signal.CLEAR)
        if self.state is State.BASELINE and self.writable:
            self._doubt = None
            self.ledger.put_back("baseline", doubt.aside)
            self.ledger.interrupt()
            self._move(Signal.MEASURED)
            plan, self._resumable = self._resumable, None
            self._resume(plan)

    def _react(self, change: Change) -> None:
        if change is not Change.NONE:
            self._guard.excuse()
        super()._react(change)

    def _free_stuck_clocks(self) -> None:
        """A reset that succeeded and did nothing is invisible but for this: still slow."""
        doubt, known = self._doubt, self._known
        if doubt is not None and known is not None and doubt.breach is not Breach.FASTER:
            for rank in doubt.slow_ranks(known.knowledge.noise()):
                self._insist(rank)

    # --- how long to wait -----------------------------------------------------------------------

    def _clear_iterations(self) -> int:
        """Longer with every recent trouble: what keeps failing is not tried at once."""
        recent = max(0, math.ceil(self._unrest) - 1)
        return min(1 << min(recent, 16), MOST_CLEAR_ITERATIONS)

    def _quiet(self) -> None:
        """Another held iteration without trouble."""
        self._acquitted = max(0, self._acquitted - 1)
        self._unrest = max(0.0, self._unrest - QUIETED)
        if self._unrest == 0.0:
            self._tightened = 0

    # --- letting go -----------------------------------------------------------------------------

    def _trouble(self, why: str) -> None:
        self._excusable = False
        if self.state in CLOCKS_MAY_BE_LOWERED:
            self._unrest += 1
            self._guard.clear()
        super()._trouble(why)

    def _pause(self) -> None:
        self._keep_plan()
        super()._pause()

    def _lose_track(self) -> None:
        self._keep_plan()
        super()._lose_track()

    def _keep_plan(self) -> None:
        if self._episode is not None and self._episode.normal is not None:
            self._resumable = self._episode.normal

    def _start_anew(self) -> None:
        self._hold, self._guard = HoldControl(self._budget()), Guard(self._budget())
        self._doubt, self._resumable, self._basis = None, None, {}
        self._breaches = self._waiting = self._tightened = self._acquitted = 0
        self._unrest, self._parked = 0.0, False
        self.reaction.caution = CAUTION

    def _budget(self) -> float:
        """How much longer iterations may get: the job's own word, else the configuration's."""
        told = self.roster.slowdown_budget
        return self._settings.slowdown_budget if told is None else told


def _modelled(breach: Breach, lost: float) -> str:
    """What lowered clocks have to do with it, as far as that can be said."""
    if breach is Breach.FASTER:
        return ": the job has become faster, so its baseline is measured anew"
    return f" (lowered clocks cost {100 * max(lost, 0.0):.2f} % of the iteration, by the curves)"
