"""Whole iterations of a pipeline, and the pipeline that they reveal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

from perseusd.core.events.tracking import RankIteration, Span, Step, aligned_numbers
from perseusd.core.model import Computation, Edge, Kind, Pipeline
from perseusd.core.schedules import pipelines
from perseusd.errors import PlanningError

KEPT_OPEN = 8
"""Iterations that some rank has finished and others have not; more means a rank went missing."""

MOST_COMPUTATIONS = 16_384
"""Per iteration, of all ranks together; what is done at an iteration's end is bounded by it."""

MOST_KINDS = 64
"""Per rank: each kind has powers to be told apart by one counter."""

CONTRADICTION = 0.5
"""Of its predecessor's duration: a computation that typically starts this long before its
predecessor has ended does not depend on it, so the pipeline is not what we take it for."""


@dataclass(frozen=True, slots=True)
class JobIteration:
    """One iteration of every rank, in stage order."""

    number: int
    ranks: tuple[RankIteration, ...]

    @property
    def start_ns(self) -> int:
        return min(r.spans[0].start_ns for r in self.ranks)

    @property
    def end_ns(self) -> int:
        return max(r.spans[-1].end_ns for r in self.ranks)


@dataclass
class Assembly:
    """Joins the ranks' iterations by number.

    Ranks whose trainer does not tell the iteration count for themselves; they are aligned by time
    as soon as each has completed two.
    """

    ranks: int
    offsets: list[int] | None = None
    _open: dict[int, dict[int, RankIteration]] = field(default_factory=dict)
    _lengths: dict[int, float] = field(default_factory=dict)
    _latest: dict[int, tuple[int, int]] = field(default_factory=dict)

    def add(self, rank: int, iteration: RankIteration, counted: bool) -> JobIteration | None:
        """`counted`: the number is the daemon's own count, not the trainer's."""
        number = iteration.number
        if counted:
            if self.offsets is None and not self._align(rank, iteration):
                return None
            assert self.offsets is not None
            number += self.offsets[rank]
        joined = self._open.setdefault(number, {})
        joined[rank] = iteration
        if len(joined) == self.ranks:
            del self._open[number]
            return JobIteration(number, tuple(joined[r] for r in range(self.ranks)))
        while len(self._open) > KEPT_OPEN:
            del self._open[min(self._open)]
        return None

    def _align(self, rank: int, iteration: RankIteration) -> bool:
        before = self._latest.get(rank)
        self._latest[rank] = latest = iteration.number, iteration.spans[0].start_ns
        if before is not None:
            self._lengths[rank] = (latest[1] - before[1]) / max(latest[0] - before[0], 1)
        if len(self._lengths) < self.ranks or self._lengths[0] <= 0:
            return False
        ranks = range(self.ranks)
        self.offsets = aligned_numbers([self._latest[r] for r in ranks], self._lengths[0])
        return True


def observed_pipeline(iterations: Sequence[JobIteration], schedule: str | None = None) -> Pipeline:
    """The pipeline as it ran: orders as observed, dependencies by rule, communication as measured.

    iterations: alike in every rank's order.
    schedule: the name that the ranks declare, which may tell where virtual stages are: advice.
    Raises PlanningError where the order cannot be a pipeline, or what was seen contradicts it.
    """
    _check_size(iterations[-1])
    orders = tuple(
        tuple(
            Computation(rank, span.step.chunk, span.step.instruction, span.step.microbatch)
            for span in own.spans
        )
        for rank, own in enumerate(iterations[-1].ranks)
    )
    bare = _uncontradicted(pipelines(orders, schedule=schedule), iterations)
    lags = _lags(bare, iterations)
    typical = median(lags.values()) if lags else 0.0
    edges = tuple(
        Edge(edge.before, edge.after, lags.get(_link(edge), typical)) for edge in bare.edges
    )
    return Pipeline(orders, edges)


def alike(iterations: Sequence[JobIteration]) -> list[JobIteration]:
    """Those in which every rank kept the order of the last one."""
    return [i for i in iterations if _orders(i) == _orders(iterations[-1])]


def _orders(iteration: JobIteration) -> list[tuple[Step, ...]]:
    return [own.order for own in iteration.ranks]


def _check_size(iteration: JobIteration) -> None:
    computations = sum(len(own.spans) for own in iteration.ranks)
    if computations > MOST_COMPUTATIONS:
        raise PlanningError(
            f"an iteration has {computations} computations, and at most {MOST_COMPUTATIONS} are "
            "planned: name longer ones, such as several layers or microbatches at a time"
        )
    for rank, own in enumerate(iteration.ranks):
        kinds = len({(step.chunk, step.instruction) for step in own.order})
        if kinds > MOST_KINDS:
            raise PlanningError(
                f"rank {rank} runs {kinds} kinds of computations (instruction and chunk), and at "
                f"most {MOST_KINDS} are planned"
            )


def _uncontradicted(candidates: Iterable[Pipeline], iterations: Sequence[JobIteration]) -> Pipeline:
    """The first that was kept by what was seen; raises the first one's contradiction otherwise."""
    refusals: list[PlanningError] = []
    for bare in candidates:
        try:
            _check_dependencies(bare, iterations)
        except PlanningError as error:
            refusals.append(error)
        else:
            return bare
    raise refusals[0]


def _check_dependencies(bare: Pipeline, iterations: Sequence[JobIteration]) -> None:
    """Raises where the dependencies that the rules ask for were not kept by what was seen."""
    early: dict[tuple[Kind, Kind], list[float]] = defaultdict(list)
    for iteration in iterations:
        spans, _ = _by_computation(bare, iteration)
        for edge in bare.edges:
            before, after = spans[edge.before], spans[edge.after]
            length = max(before.end_ns - before.start_ns, 1)
            early[edge.before.kind, edge.after.kind].append(
                (before.end_ns - after.start_ns) / length
            )
    for (before_kind, kind), shares in early.items():
        if median(shares) > CONTRADICTION:
            raise PlanningError(
                f"{kind.instruction} on rank {kind.rank} starts before what it should wait for on "
                f"rank {before_kind.rank} has ended: check that stages are numbered in the "
                "pipeline's order"
            )


def _link(edge: Edge) -> tuple[int, int, str]:
    return edge.before.rank, edge.after.rank, edge.after.instruction


def _lags(bare: Pipeline, iterations: Sequence[JobIteration]) -> dict[tuple[int, int, str], float]:
    """Median time from a predecessor's end to the start of a computation that waited for it."""
    seen: dict[tuple[int, int, str], list[float]] = defaultdict(list)
    for iteration in iterations:
        spans, free_ns = _by_computation(bare, iteration)
        for edge in bare.edges:
            if edge.before.rank == edge.after.rank:
                continue
            ended, started = spans[edge.before].end_ns, spans[edge.after].start_ns
            if free_ns[edge.after] < ended <= started:
                seen[_link(edge)].append((started - ended) * 1e-9)
    return {link: median(gaps) for link, gaps in seen.items()}


def waits(bare: Pipeline, iteration: JobIteration) -> dict[tuple[int, int, str], float]:
    """Median time that what was sent took, by (rank from, rank to, instruction): where waited for.

    Of one iteration; the ranks' stamps are of one host.
    """
    return _lags(bare, [iteration])


def _by_computation(
    bare: Pipeline, iteration: JobIteration
) -> tuple[dict[Computation, Span], dict[Computation, int]]:
    """Each computation's span, and when its rank became free for it."""
    spans: dict[Computation, Span] = {}
    free_ns: dict[Computation, int] = {}
    for order, own in zip(bare.orders, iteration.ranks, strict=True):
        free = 0
        for computation, span in zip(order, own.spans, strict=True):
            spans[computation], free_ns[computation] = span, free
            free = span.end_ns
    return spans, free_ns
