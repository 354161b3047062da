"""One pipeline among stragglers: what it hears and sees of them, and the plans that follow.

A straggler that begins is planned for while the present plan goes on; whatever leaves less time, or
makes one of this pipeline's own ranks slow, is obeyed in the running iteration.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping

from perseusd.core.actions import Notice
from perseusd.core.events.paced import PacedPlan
from perseusd.core.jobs.announced import Word
from perseusd.core.jobs.observing import Observing
from perseusd.core.jobs.reaction import NOBODY, Change, Others, Reaction
from perseusd.core.jobs.states import CLOCKS_MAY_BE_LOWERED, State
from perseusd.core.jobs.studying import NOTICEABLE
from perseusd.core.learned.knowledge import GpuFacts
from perseusd.core.savings.ledger import Record
from perseusd.core.settings import Settings

ELSEWHERE = -1
"""Among slow ranks: another replica."""


class Reacting(Observing):
    """One replica's pipeline as far as stragglers ask something of it."""

    def __init__(
        self, name: str, settings: Settings, gpus: Mapping[str, GpuFacts], replica: int = 0
    ) -> None:
        super().__init__(name, settings, gpus, replica)
        self.reaction = Reaction()

    @abstractmethod
    def _request_plan(self) -> None:
        """Ask the planner, as things stand."""

    @abstractmethod
    def _void_requests(self) -> None:
        """Answers to what was asked so far are not wanted any more."""

    @abstractmethod
    def _explained(self, by: Collection[int]) -> None:
        """Stragglers are known now, own ranks or ELSEWHERE: are they why iterations were long?"""

    def tick(self, now_ns: int) -> None:
        announced = self.reaction.announced
        if announced.expired(now_ns):
            self.announce_straggler(None)
        if (factor := announced.begins(now_ns)) is not None:
            self.announce_straggler(factor)
        super().tick(now_ns)

    def next_due_ns(self) -> int | None:
        coming = self.reaction.announced.coming
        due = [super().next_due_ns(), coming[1] if coming is not None else None]
        return min((d for d in due if d is not None), default=None)

    # --- what is heard --------------------------------------------------------------------------

    def announce_straggler(self, factor: float | None, starts_ns: int | None = None) -> None:
        """Another replica takes `factor` times this one's full-clock iteration; None: no more.

        starts_ns: when that begins, on the host's monotonic clock; None: now.
        """
        if factor is not None and starts_ns is not None:
            self.reaction.announced.foretell(factor, starts_ns)
        else:
            self.reaction.announced.since_iteration = self.iteration
            self._react(self.reaction.announce(factor))

    def _check_announced(self, finished: Record, slowed: bool) -> None:
        """Behind a straggler a job waits; once it does not, the announcement is out of date.

        slowed: whether the iteration ran under a plan for the straggler.
        """
        baseline, announced = self.ledger.sample("baseline"), self.reaction.announced
        if baseline is None or self.state is not State.HOLD or announced.factor is None:
            return
        waited_s = finished.time_s - finished.makespan_s - self.ledger.usual_gap_s()
        match announced.waited(waited_s, baseline.mean, slowed):
            case Word.DOUBTED:
                self.reaction.doubt()
                self._react(Change.SOONER)
            case Word.SEEN:
                self._request_plan()
            case Word.UNTRUE:
                told = "nobody is waited for: no straggler any more"
                self.actions.append(Notice(self.name, told))
                self.announce_straggler(None)

    # --- what is seen ---------------------------------------------------------------------------

    def expect(self, elsewhere_s: float | None, noise: float, others: Others = NOBODY) -> None:
        """The slowest other replica that straggles was seen to take so long; None: none does.

        noise: of `elsewhere_s`, relative. others: what replicas take, whether or not they straggle.
        """
        self.reaction.newest_s = others.newest_s
        if self.state not in CLOCKS_MAY_BE_LOWERED:
            self.reaction.others_s = others.usual_s
            if elsewhere_s is not None:
                self._explained((ELSEWHERE,))
            return
        baseline = self.ledger.sample("baseline")
        if baseline is not None:
            makespan_s = self.ledger.makespan_s("baseline")
            self._react(self.reaction.expect(elsewhere_s, makespan_s, noise))

    def slowed(self, ill: Collection[int]) -> None:
        """These ranks of this pipeline straggle now."""
        self.ill = frozenset(ill)
        known = self._known
        if known is None:
            return
        paces = {r: min(known.pace(r), known.newest_pace(r)) for r in self._slower(known)}
        slow = {rank: pace for rank, pace in paces.items() if pace > 1 + NOTICEABLE}
        if self.state not in CLOCKS_MAY_BE_LOWERED:
            self.reaction.slowed({}, 1.0)  # what is measured now is measured as it is
            if slow:
                self._explained(slow)
            return
        for rank in slow.keys() - self.reaction.slow.keys():
            self._insist(rank)
        noise = known.knowledge.noise() / max(1, len(known.pipeline.orders[0])) ** 0.5
        self._react(self.reaction.slowed(slow, known.inflation(slow), noise))

    # --- what follows ---------------------------------------------------------------------------

    def _react(self, change: Change) -> None:
        if change is Change.NONE or self.state is not State.HOLD:
            return
        if self._episode is None or self._pacer is None:
            return
        if change is Change.SOONER:  # there is less time now: the normal plan until a new one
            self._void_requests()
            self._adopt(self._meanwhile(), at_once=True)
        if self.reaction.eased or self._episode.normal is None:
            self._request_plan()

    def _meanwhile(self) -> PacedPlan | None:
        """What runs without harm whatever stragglers do: the normal plan, slow ranks at full."""
        normal = self._episode.normal if self._episode is not None else None
        slow = self.reaction.slow
        if normal is None or self._known is None or not slow:
            return normal
        least = min(slow.get(rank, 1.0) for rank in range(len(normal.plan.clocks)))
        slower = [rank for rank, factor in slow.items() if factor > least * (1 + NOTICEABLE)]
        # Where all are as slow, nothing has changed among them.
        return normal.at_full(slower).slower(self._known.graph, slow)

    def _straggling_scale(self) -> float:
        """How many times the baseline's iteration time stragglers make it."""
        baseline = self.ledger.sample("baseline")
        if baseline is None:
            return self.reaction.announced.factor or 1.0
        return self.reaction.scale(baseline.mean, self.ledger.makespan_s("baseline"))

    def _stretch_of(self, command: float) -> float:
        """How much later than at full clock the pipeline may end, as a share of the baseline."""
        baseline = self.ledger.sample("baseline")
        if baseline is None:
            return command
        makespan_s = self.ledger.makespan_s("baseline")
        return self.reaction.stretch(command, baseline.mean, makespan_s)
