"""Whole iterations of a pipeline, and the pipeline that they reveal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from perseusd.core.model import Computation, Edge, Pipeline
from perseusd.core.schedules import pipeline
from perseusd.core.tracking import RankIteration, Span, aligned_numbers

KEPT_OPEN = 8
"""Iterations that some rank has finished and others have not; more means a rank went missing."""


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
    _starts: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))

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
        self._starts[rank].append(iteration.spans[0].start_ns)
        if len(self._starts) < self.ranks or min(map(len, self._starts.values())) < 2:
            return False
        anchor = self._starts[0]
        length = (anchor[-1] - anchor[0]) / (len(anchor) - 1)
        self.offsets = aligned_numbers([self._starts[r] for r in range(self.ranks)], length)
        return True


def observed_pipeline(iterations: Sequence[JobIteration]) -> Pipeline:
    """The pipeline as it ran: orders as observed, dependencies by rule, communication as measured.

    Raises PlanningError where the order cannot be a pipeline.
    """
    orders = tuple(
        tuple(
            Computation(rank, span.step.chunk, span.step.instruction, span.step.microbatch)
            for span in own.spans
        )
        for rank, own in enumerate(iterations[-1].ranks)
    )
    bare = pipeline(orders, 0.0)
    lags = _lags(bare, iterations)
    typical = median(lags.values()) if lags else 0.0
    edges = tuple(
        Edge(edge.before, edge.after, lags.get(_link(edge), typical)) for edge in bare.edges
    )
    return Pipeline(orders, edges)


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
