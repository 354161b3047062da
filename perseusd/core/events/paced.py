"""A plan with the timelines that are predicted of it, and what can be told from them beforehand."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from perseusd.core.graph import Graph
from perseusd.core.model import Curve, Kind, Plan

WAITED_S = 1e-3
"""Predicted between two computations, it is a wait, which may turn out shorter."""

SHORTER = 0.9
"""Of what computations are predicted to take, that they take at least."""


class Timeline(NamedTuple):
    """A rank's predicted iteration: seconds from the pipeline's iteration start, per position."""

    start_s: tuple[float, ...]
    end_s: tuple[float, ...]


class Outlook(NamedTuple):
    """How long it takes a rank at least to get to a raise that only more of its events foretell.

    All in ns of computing: waits may turn out shorter. inf where nothing is raised.
    busy_ns: by position, from the start of that computation for how long nothing more is to be
    heard: until the run's end, whose raise that start foretells, or until a wait before that.
    then_ns: from there to the first raise that it does not foretell. raise_ns: by position, from
    its start to the first raise after it; the last entry is of the next iteration's first.
    """

    busy_ns: tuple[float, ...]
    then_ns: tuple[float, ...]
    raise_ns: tuple[float, ...]


@dataclass(frozen=True)
class PacedPlan:
    """A plan with its predicted timelines, one per rank."""

    plan: Plan
    timelines: tuple[Timeline, ...]

    @cached_property
    def changes(self) -> tuple[tuple[int, ...], ...]:
        """Per rank and position, the next position at another clock; past the last one, the end."""
        return tuple(_changes(own) for own in self.plan.clocks)

    @cached_property
    def outlooks(self) -> tuple[Outlook, ...]:
        """One per rank."""
        both = zip(self.plan.clocks, self.timelines, strict=True)
        return tuple(_outlook(clocks, line) for clocks, line in both)

    def at_full(self, ranks: Collection[int]) -> PacedPlan:
        """The same, but for some ranks that stay at full clock throughout."""
        clocks = tuple(
            (None,) * len(own) if rank in ranks else own
            for rank, own in enumerate(self.plan.clocks)
        )
        return PacedPlan(Plan(clocks), self.timelines)

    def slower(self, graph: Graph, slow: Mapping[int, float]) -> PacedPlan:
        """The same clocks, and what the timelines are when ranks take so many times as long."""
        factors = np.array([slow.get(rank, 1.0) for rank in range(graph.ranks)])
        return PacedPlan(self.plan, _timelines(graph, self.durations(graph) * factors[graph.rank]))

    def durations(self, graph: Graph) -> NDArray[np.float64]:
        """Shape (n,): predicted seconds of every node of the graph it was made for."""
        seconds = np.empty(len(graph))
        for nodes, line in zip(graph.order, self.timelines, strict=True):
            seconds[nodes] = np.array(line.end_s) - np.array(line.start_s)
        return seconds


def _changes(clocks: Sequence[int | None]) -> tuple[int, ...]:
    """Per position, the next one at another clock than its own; `len(clocks)` where none is."""
    return tuple(end for begin, end in _runs(clocks) for _ in range(begin, end))


def _runs(clocks: Sequence[int | None]) -> Iterator[tuple[int, int]]:
    """Positions of one clock in a row: the first one's, and the one after the last."""
    begin = 0
    for end in range(1, len(clocks) + 1):
        if end == len(clocks) or clocks[end] != clocks[begin]:
            yield begin, end
            begin = end


def is_raise(before_mhz: int | None, after_mhz: int | None) -> bool:
    """Whether going from one clock to another (None: full) makes a GPU faster."""
    if after_mhz is None:
        return before_mhz is not None
    return before_mhz is not None and after_mhz > before_mhz


def _outlook(clocks: Sequence[int | None], line: Timeline) -> Outlook:
    start, end = np.array(line.start_s), np.array(line.end_s)
    count = len(clocks)
    at_ns = np.concatenate(([0.0], np.cumsum((end - start) * (SHORTER * 1e9))))
    runs = [end for _, end in _runs(clocks)]
    raised = [e for e in runs if is_raise(clocks[e - 1], clocks[e] if e < count else None)]
    raises = np.array(raised, int)
    first_ns = at_ns[raises[0]] if raised else np.inf
    # One more raise than there are: the next iteration's first.
    raise_at = np.append(at_ns[raises], at_ns[-1] + first_ns)
    raise_ns = raise_at[np.searchsorted(raises, np.arange(count + 1), side="right")] - at_ns
    waits = np.flatnonzero(start[1:] - end[:-1] >= WAITED_S) + 1
    heard = np.array(sorted({*runs, *waits.tolist()}), int)
    until = heard[np.searchsorted(heard, np.arange(count), side="right")]
    busy_ns = at_ns[until] - at_ns[:-1]
    return Outlook(*(tuple(a.tolist()) for a in (busy_ns, raise_ns[until], raise_ns)))


def paced(plan: Plan, graph: Graph, curves: Mapping[Kind, Curve]) -> PacedPlan:
    """A plan with the timelines that its curves predict."""
    durations = np.empty(len(graph))
    for rank, nodes in enumerate(graph.order):
        for node, clock in zip(nodes, plan.clocks[rank], strict=True):
            durations[node] = _duration(curves[graph.nodes[node].kind], clock)
    return PacedPlan(plan, _timelines(graph, durations))


def _timelines(graph: Graph, durations: NDArray[np.float64]) -> tuple[Timeline, ...]:
    start = graph.earliest(durations)
    return tuple(
        Timeline(tuple(start[nodes].tolist()), tuple((start + durations)[nodes].tolist()))
        for nodes in graph.order
    )


def _duration(curve: Curve, clock_mhz: int | None) -> float:
    if clock_mhz is None:
        return curve.time_s[-1]
    return float(np.interp(clock_mhz, curve.clock_mhz, curve.time_s))
