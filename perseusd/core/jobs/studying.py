"""Studying one pipeline: whole iterations become knowledge, figures, and something to watch.

It ends where decisions begin: what is known, what iterations took and used, who is slow, and what
an earlier job of the same signature had learned.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from perseusd.core.actions import Discard, Notice, Recall, Remember
from perseusd.core.events.iterations import JobIteration, alike, observed_pipeline, waits
from perseusd.core.events.pacing import Pacer
from perseusd.core.jobs.following import Followed
from perseusd.core.jobs.progress import Progress, progress_of
from perseusd.core.jobs.states import CLOCKS_MAY_BE_LOWERED, State
from perseusd.core.jobs.understanding import Episode, Understanding
from perseusd.core.learned.knowledge import GpuFacts
from perseusd.core.learned.memory import ForgottenError, Recollection, learned, signature
from perseusd.core.model import Computation
from perseusd.core.pieces import Pieces
from perseusd.core.savings.ledger import Record
from perseusd.core.settings import Settings
from perseusd.core.stragglers import Observation
from perseusd.errors import PlanningError

NOTICEABLE = 0.03
"""A straggling rank whose pace is within this of the usual is well again."""

BEFORE_ANOTHER = 5
"""Iterations of another order before what is known is given up for it: an evaluation is shorter."""


class Studied(Followed):
    """One replica's pipeline as far as it is known.

    observations: what the watch over all replicas shall see, each with its makespan in seconds; the
        controller takes them.
    ill: ranks that straggle now, of which nothing is learned.
    renewed: the pipeline became another one: what the watch knows of it is void.
    """

    def __init__(
        self, name: str, settings: Settings, gpus: Mapping[str, GpuFacts], replica: int = 0
    ) -> None:
        super().__init__(name, settings, gpus, replica)
        self.observations: list[tuple[Observation, float]] = []
        self.ill: frozenset[int] = frozenset()
        self.renewed = False
        self._known: Understanding | None = None
        self._progress_told: tuple[int, Progress] | None = None
        """As of an iteration; many may ask."""
        self._reasons: dict[str, set[str]] = {}
        self._signature = ""
        self._remembered: Recollection | None = None
        """What an earlier job of this signature learned, while it is being checked."""
        self.recollection: tuple[str, str] = "none", ""
        """What became of it: none, checking, holds, unlike, unusable or discarded; and why."""

    @abstractmethod
    def _decide(self, episode: Episode) -> None:
        """Everything known is up to date: what now?"""

    @abstractmethod
    def _ended(self, iteration: JobIteration, phase: str) -> None:
        """An iteration's last computation has ended."""

    @abstractmethod
    def _finished(self, finished: Record) -> None:
        """An iteration is over, and what it took and used is known."""

    @abstractmethod
    def _phase(self, iteration: JobIteration, episode: Episode) -> str:
        """What the iteration counts for in the ledger."""

    @abstractmethod
    def _start_anew(self) -> None:
        """The pipeline is another one than before: what was decided for that is void."""

    def reconfigure(self, settings: Settings) -> None:
        super().reconfigure(settings)
        if self._known is not None:
            self._known.explorer.slowdown = self._learning_settings().learning_slowdown

    # --- what is read ---------------------------------------------------------------------------

    def reading(self, uuid: str, time_ns: int, energy_j: float) -> None:
        """The energy counter of one of this job's GPUs was read."""
        self.ledger.poll(uuid, time_ns, energy_j)
        if self._known is not None:
            self._known.poll_counter(uuid, time_ns, energy_j)

    def gpu_state(self, uuid: str, reasons: Collection[str]) -> None:
        """Why one of this job's GPUs runs below its highest clock, now."""
        self._reasons.setdefault(uuid, set()).update(reasons)

    # --- iterations become knowledge ------------------------------------------------------------

    def think(self) -> None:
        if not self.patient and self._to_think_of is None and self._known is not None:
            self._known.knowledge.work_on()
        super().think()

    def think_on(self) -> None:
        if self._thoughts is None and self._known is not None:
            self._known.knowledge.work_on()
        super().think_on()

    @property
    def thinking(self) -> bool:
        known = self._known
        return super().thinking or (known is not None and known.knowledge.has_work)

    def _whole(self, episode: Episode) -> Pieces[None]:
        if episode is not self._episode:
            return  # let go of before this was begun
        if episode.pacer is None and not self._understand(episode):
            return
        early, episode.early = episode.early, []
        if not early:
            return  # the thoughts before these took them all
        for iteration in early:
            yield from self._learn_from(iteration, episode)
            while self._takes_its_time and (known := self._known) and known.knowledge.has_work:
                known.knowledge.work_on()  # what is decided now may ask for all that is known
                yield
            if episode is not self._episode or self._known is None:
                return
        self._decide(episode)

    def _understand(self, episode: Episode) -> bool:
        """Once every rank's order is known: the pipeline, and what is (still) known of it."""
        kept = max(self._settings.baseline_iterations + 1, BEFORE_ANOTHER)
        episode.early = episode.early[-kept:]
        leaders = [self.roster.leader(s) for s in range(episode.assembly.ranks)]
        if any(m is None or m.track.order is None for m in leaders):
            self._why = "the order of its computations is not understood yet"
            return False
        if not self._repeated(episode):
            if len(episode.early) < (2 if self._known is None else BEFORE_ANOTHER):
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
            self._known = Understanding(seen, gpus, self._learning_settings())
            self.ledger.clear()
            self.renewed = True
            self._start_anew()
            self._recall()
        episode.pacer = Pacer(seen.ranks, self._latency_ns)
        return True

    def _repeated(self, episode: Episode) -> bool:
        """Whether every rank's order is again the one that was known: then once is enough."""
        if self._known is None:
            return False
        episode.early = alike(episode.early)
        ranks = zip(self._known.pipeline.orders, episode.early[-1].ranks, strict=True)
        return all(tuple(c[1:] for c in order) == own.order for order, own in ranks)

    def _learning_settings(self) -> Settings:
        """A job that told a larger budget than learning usually has may spend that on learning."""
        told = self.roster.slowdown_budget or 0.0
        allowed = max(self._settings.learning_slowdown, told)
        return replace(self._settings, learning_slowdown=allowed)

    def _learn_from(self, iteration: JobIteration, episode: Episode) -> Pieces[None]:
        """Between two pieces, the job may have let go of its episode: then no more is learned."""
        known = self._known
        assert known is not None
        episode.newest = iteration.number
        wary, ill = self.state in CLOCKS_MAY_BE_LOWERED, self._slower(known)
        phase = self._phase(iteration, episode)
        seen = yield from known.learning_from(iteration, episode.ends, self._logs, ill, wary)
        if episode is not self._episode:
            return
        self._ended(iteration, phase)
        lags = waits(known.pipeline, iteration)
        yield
        if episode is not self._episode:
            return
        self._tell_watch(iteration, seen, lags)
        gpus = [self.roster.gpus(stage) for stage in range(len(iteration.ranks))]
        finished = yield from self.ledger.taking_in(iteration, phase, gpus)
        yield
        if finished is not None and episode is self._episode:
            self._finished(finished)

    def _slower(self, known: Understanding) -> list[int]:
        """Ranks that are slower than they were, while any straggles: nothing is learned of them."""
        ranks = range(known.pipeline.ranks) if self.ill else ()
        return [rank for rank in ranks if known.pace(rank) > 1 + NOTICEABLE]

    def _tell_watch(
        self,
        iteration: JobIteration,
        seen: Sequence[tuple[Computation, float]],
        lags: Mapping[tuple[int, int, str], float],
    ) -> None:
        learning = self.state is State.LEARN
        lowered = frozenset(c.rank for c, _ in seen) if learning else frozenset[int]()
        reasons = {
            rank: frozenset[str]().union(
                *(self._reasons.get(u, ()) for u in self.roster.gpus(rank))
            )
            for rank in range(len(iteration.ranks))
        }
        self._reasons.clear()
        last = self.ledger.last
        observation = Observation(
            replica=self.replica,
            number=iteration.number,
            computations=seen,
            lags=lags,
            time_s=last.time_s if last is not None else None,
            uncertain=lowered,
            reasons=reasons,
        )
        makespan_s = (iteration.end_ns - iteration.start_ns) * 1e-9
        self.observations.append((observation, makespan_s))

    # --- what was remembered --------------------------------------------------------------------

    def _recall(self) -> None:
        known = self._known
        assert known is not None
        self._remembered, self.recollection = None, ("none", "")
        self._signature = signature(known.pipeline, known.gpus, self.roster.schedule)
        if self._settings.remember and not self._settings.observe:
            self.actions.append(Recall(self.name, self._signature))

    def recalled(self, key: str, remembered: Mapping[str, object] | None) -> None:
        """What was kept on disk under this signature; None: nothing."""
        known = self._known
        too_late = self.state not in (State.BASELINE, State.RELEASE)
        if remembered is None or known is None or key != self._signature or too_late:
            return
        try:
            self._remembered = Recollection(remembered, known.gpus)
            self.recollection = "checking", ""
        except ForgottenError as error:
            self.recollection = "unusable", str(error)
            self.actions.append(Notice(self.name, f"what was remembered cannot be used: {error}"))

    def _recognise(self) -> None:
        """Whether the baseline is that of the job that was remembered."""
        memory, known = self._remembered, self._known
        if memory is None or known is None:
            return
        if (other := memory.fits(known.knowledge)) is not None:
            self._remembered, self.recollection = None, ("unlike", other)
            self.actions.append(Notice(self.name, f"this is not the job remembered: {other}"))

    def _check_memory(self, known: Understanding) -> None:
        """What is remembered joins the knowledge once this job's own trials have confirmed it."""
        memory = self._remembered
        if memory is None:
            return
        if (wrong := memory.contradicted(known.knowledge)) is not None:
            self._remembered, self.recollection = None, ("discarded", wrong)
            self.actions.append(Discard(self._signature))
            self.actions.append(Notice(self.name, f"what was remembered is wrong: {wrong}"))
        elif memory.confirmed(known.knowledge):
            self._remembered, self.recollection = None, ("holds", "")
            known.knowledge.recall(memory.snapshot)
            self.actions.append(Notice(self.name, "what was remembered of this job still holds"))

    @property
    def _recognised(self) -> bool:
        """Whether what an earlier start had learned is believed."""
        return self.recollection[0] == "holds"

    def _distrust(self) -> None:
        """A plan made of what was remembered costs more than it said."""
        if self._recognised:
            self.recollection = "discarded", "a plan made of it was too slow"
            self.actions.append(Discard(self._signature))

    def _remember(self) -> None:
        known = self._known
        if known is not None and self._settings.remember:
            kept = learned(known.knowledge, self.roster.schedule)
            self.actions.append(Remember(self._signature, kept))

    # --- what can be told -----------------------------------------------------------------------

    def critical_path(self) -> Sequence[tuple[int, float]]:
        """(stage, its share of the critical path as observed of late), largest first."""
        return self._known.observed.shares() if self._known is not None else ()

    def slack(self) -> Sequence[float | None]:
        """By stage, how much longer it could compute without a longer iteration, as observed.

        None where that is not found yet: of a large job each call finds that of some stages.
        """
        return self._known.observed.slack_of_late() if self._known is not None else ()

    def progress(self) -> Progress | None:
        """How much of the curves is known; None while the order is not understood."""
        if self._known is None:
            return None
        if self._progress_told is None or self._progress_told[0] != self.iteration:
            self._progress_told = self.iteration, progress_of(self._known)
        return self._progress_told[1]

    def _forget(self) -> None:
        super()._forget()
        self._known = None
        self.observations.clear()
        self.renewed = True
        self._start_anew()
