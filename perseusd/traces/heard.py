"""The jobs of a recording, followed by the daemon's own means, with no decision made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from perseusd.core.controller import Controller
from perseusd.core.events.iterations import JobIteration, waits
from perseusd.core.jobs.job import Job
from perseusd.core.jobs.understanding import Episode
from perseusd.core.learned.knowledge import GpuFacts
from perseusd.core.model import Computation
from perseusd.core.pieces import Pieces
from perseusd.core.settings import Settings
from perseusd.traces.recording import DROPPED, Header, Input
from perseusd.traces.replay import tell

_Link = tuple[int, int, str]  # rank before, rank after, instruction after


class Cut(NamedTuple):
    """A computation as it ran; pieces: (seconds, clock in MHz)."""

    computation: Computation
    pieces: tuple[tuple[float, int], ...]


@dataclass(frozen=True)
class HeardIteration:
    """One replica's iteration; episode: those of one are without a gap in what is understood."""

    number: int
    episode: int
    start_ns: int
    computations: tuple[Cut, ...]
    lags: Mapping[_Link, float]
    reasons: Mapping[int, frozenset[str]]


class Heard(Job):
    """A replica that is followed and nothing else: its whole iterations, in `heard`.

    keeps: whether iterations are kept, or only counted in `count`.
    """

    def __init__(
        self, name: str, settings: Settings, gpus: Mapping[str, GpuFacts], replica: int = 0
    ) -> None:
        super().__init__(name, settings, gpus, replica)
        self.keeps = True
        self.count = 0
        self.heard: list[HeardIteration] = []
        self.facts: dict[int, GpuFacts] = {}
        """By rank of the pipeline, the GPU that stands for all of that stage's."""
        self.ranks: dict[int, int] = {}
        """By stage, the lowest rank there."""
        self._episodes = 0
        self._newest: Episode | None = None

    def reading(self, uuid: str, time_ns: int, energy_j: float) -> None:
        """Energy is of no use here, and would only gather."""

    def _learn_from(self, iteration: JobIteration, episode: Episode) -> Pieces[None]:
        assert self._known is not None
        self.count += 1
        if not self.keeps:
            return
        yield from ()
        if episode is not self._newest:
            self._episodes, self._newest = self._episodes + 1, episode
            self.facts = dict(self._known.gpus)
            leaders = {stage: self.roster.leader(stage) for stage in self.facts}
            self.ranks = {s: m.hello.rank for s, m in leaders.items() if m is not None}
        self.heard.append(
            HeardIteration(
                iteration.number,
                self._episodes,
                iteration.start_ns,
                tuple(self._cut(iteration)),
                waits(self._known.pipeline, iteration),
                self._take_reasons(len(iteration.ranks)),
            )
        )

    def _decide(self, episode: Episode) -> None:
        """Nothing: this job is only heard."""

    def _cut(self, iteration: JobIteration) -> Iterator[Cut]:
        """Every computation, cut where its GPU's clock changed."""
        assert self._known is not None
        for rank, own in enumerate(iteration.ranks):
            log = self._logs[self._known.gpus[rank].uuid]
            for computation, span in zip(self._known.pipeline.orders[rank], own.spans, strict=True):
                pieces = log.pieces(span.start_ns, span.end_ns)
                yield Cut(computation, tuple(((b - a) * 1e-9, clock) for a, b, clock in pieces))

    def _take_reasons(self, ranks: int) -> dict[int, frozenset[str]]:
        """Per rank, why its GPUs ran below their highest clock since the last iteration."""
        found = {
            rank: frozenset(r for u in self.roster.gpus(rank) for r in self._reasons.get(u, ()))
            for rank in range(ranks)
        }
        self._reasons.clear()
        return found


@dataclass
class Follower:
    """Follows all jobs of a recording as its inputs come.

    keeps: whether their iterations are kept, or only counted.
    jobs: those that were seen, one for each replica, ended ones included.
    """

    header: Header
    keeps: bool = True
    jobs: list[Heard] = field(default_factory=list)
    dropped: int = 0
    _controller: Controller = field(init=False)

    def __post_init__(self) -> None:
        settings = replace(self.header.settings, observe=True)
        self._controller = Controller(settings, self.header.gpus, new_job=self._begin)

    def follow(self, told: Input) -> None:
        if told.name == DROPPED:
            self.dropped += int(told.arguments[0])
        else:
            tell(self._controller, told)

    def holder(self, uuid: str) -> str | None:
        """The name of the job, or of its replica, that holds a GPU now."""
        return self._controller.holder(uuid)

    def _begin(
        self, name: str, settings: Settings, gpus: Mapping[str, GpuFacts], replica: int
    ) -> Job:
        job = Heard(name, settings, gpus, replica)
        job.keeps = self.keeps
        self.jobs.append(job)
        return job
