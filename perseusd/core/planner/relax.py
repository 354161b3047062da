"""The convex relaxation of the deadline problem as a linear program.

Computations are put in *groups* that share a clock. Each group g mixes its points p with weights
λ ≥ 0, Σ λ = 1; x(g, k) is the time of its kind k, s(i) the start of computation i (Perseus,
SOSP 2024, §4, relaxed to the convex hull of the measured points):

    min  Σ λ(g, p) · cost(g, p)
    s(j) ≥ s(i) + x(i) + lag(i, j)            every precedence i → j;  x(i) = x(g(i), k(i))
    s(i) + x(i) ≤ D                            every i that nothing follows
    x(g, k) = Σ λ(g, p) · time(k, p)

Under noise every sample k has starts of its own, durations ξ(i, k) · x(i) and an end z(k) in place
of D, and the mean of z is at most D (sample average approximation).

The dual of the first two kinds of rows is a flow through the graph; φ(i), what leaves i (times ξ,
over all samples), is the price in joules of one more second of computation i.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import highspy
import numpy as np
from numpy.typing import NDArray

from perseusd.core.graph import Graph
from perseusd.errors import PlanningError

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
_Entries = list[tuple[Ints, Ints, Floats]]  # (row, column, value) triples


@dataclass(frozen=True)
class Group:
    """Computations that share one clock.

    members: node numbers.  kind: (members,) which row of `time` is each member's.
    time: (kinds, points).  cost: (points,) of all members together.
    """

    members: Ints
    kind: Ints
    time: Floats
    cost: Floats


@dataclass(frozen=True)
class Relaxed:
    """cost: the least, to the solver's accuracy (about 1e-6).

    durations, price: (n,) x and φ of every computation.
    edge_flow: (K, edges) as the graph's edges.  last_flow: (K, n) through the deadline.
    bound: no assignment of points costs less; −inf where that was not worked out.
    """

    cost: float
    durations: Floats
    price: Floats
    edge_flow: Floats
    last_flow: Floats
    bound: float = -np.inf

    @property
    def deadline_price(self) -> float:
        """Joules that one more second until the deadline saves."""
        return float(self.last_flow.sum())


def relax(
    graph: Graph, groups: Sequence[Group], deadline_s: float, factor: Floats | None = None
) -> Relaxed:
    """Solve the relaxation. Every node is in exactly one group.

    factor: (n, K) samples of the noise; none: without noise.
    The solution is one from the middle of the optimal face (interior point, no crossover): it
    spreads slack over computations where a vertex gives all of it to a few, which is what makes
    it a good guide to where clocks should change.
    Raises PlanningError when no mix keeps the deadline.
    """
    program = _Program(graph, groups, np.ones((len(graph), 1)) if factor is None else factor)
    model = program.model(deadline_s)
    solver = _solved(model, (("solver", "ipm"), ("run_crossover", "off")))
    if solver.getModelStatus() not in _USABLE:
        solver = _solved(model, (("solver", "simplex"),))
    status = solver.getModelStatus()
    if status not in _USABLE:
        raise PlanningError(
            f"no clocks keep the deadline of {deadline_s:.6g} s (solver: {status.name}): "
            "raise deadline_ratio"
        )
    solution = solver.getSolution()
    return program.read(
        solver.getObjectiveValue(), np.array(solution.col_value), np.array(solution.row_dual)
    )


# kUnknown: optimal to a looser tolerance than asked; what is proved or planned from it is checked
# elsewhere.
_USABLE = (highspy.HighsModelStatus.kOptimal, highspy.HighsModelStatus.kUnknown)


def _solved(model: highspy.HighsLp, options: Sequence[tuple[str, object]]) -> highspy.Highs:
    solver = _QuietHighs()
    for option, value in (("threads", 1), *options):
        solver.setOptionValue(option, value)
    solver.passModel(model)
    solver.run()
    return solver


class _QuietHighs(highspy.Highs):  # type: ignore[misc]  # highspy has no type information
    """highspy 1.16.0 prints a banner on stdout when callbacks are enabled, before any option."""

    def enableCallbacks(self) -> None:  # noqa: N802  # highspy's name
        self.setOptionValue("output_flag", False)
        super().enableCallbacks()


class _Program:
    """The program's layout: columns [z | s | x | λ], rows [precedence | last | mean | mix | x].

    z: (K,), s: (K, n). Times are in units of the mean computation and costs of the mean cost, as
    the solver's tolerances are absolute.
    """

    def __init__(self, graph: Graph, groups: Sequence[Group], factor: Floats) -> None:
        self.graph, self.groups, self.factor = graph, groups, factor
        n, samples = factor.shape
        self.second = 1.0 / float(np.mean([group.time.mean() for group in groups]))
        self.joule = 1.0 / max(float(np.mean([np.abs(g.cost).mean() for g in groups])), 1e-300)
        self.first_x = samples * (1 + n) + np.cumsum([0, *(len(g.time) for g in groups)])
        self.first_weight = int(self.first_x[-1]) + np.cumsum([0, *(len(g.cost) for g in groups)])
        self.x_of: Ints = np.full(n, -1, dtype=np.intp)
        for g, group in enumerate(groups):
            self.x_of[group.members] = self.first_x[g] + group.kind
        self.last: Ints = np.setdiff1d(np.arange(n), graph.tail)
        self.ends = samples * len(graph.tail)
        self.mean = self.ends + samples * len(self.last)
        self.mix = self.mean + 1
        self.times = self.mix + len(groups)
        self.rows = self.times + int(self.first_x[-1] - self.first_x[0])

    def model(self, deadline_s: float) -> highspy.HighsLp:
        samples = self.factor.shape[1]
        lower, upper = np.zeros(self.rows), np.zeros(self.rows)
        lower[: self.ends] = np.tile(self.graph.lag * self.second, samples)
        upper[: self.ends] = highspy.kHighsInf
        lower[self.ends : self.mix] = -highspy.kHighsInf
        upper[self.mean] = deadline_s * self.second
        lower[self.mix : self.times] = upper[self.mix : self.times] = 1.0
        columns = int(self.first_weight[-1])
        cost = np.zeros(columns)
        cost[self.first_weight[0] :] = self.joule * np.concatenate([g.cost for g in self.groups])
        model = highspy.HighsLp()
        model.num_col_, model.num_row_ = columns, self.rows
        model.col_cost_ = cost
        model.col_lower_ = np.zeros(columns)
        model.col_upper_ = np.full(columns, highspy.kHighsInf)
        model.row_lower_, model.row_upper_ = lower, upper
        self._fill(model.a_matrix_)
        return model

    def _fill(self, matrix: highspy.HighsSparseMatrix) -> None:
        parts = [*self._group_entries()]
        for k in range(self.factor.shape[1]):
            parts += self._sample_entries(k)
        row, column, value = (np.concatenate(part) for part in zip(*parts, strict=True))
        order = np.argsort(row, kind="stable")
        matrix.format_ = highspy.MatrixFormat.kRowwise
        starts = np.searchsorted(row[order], np.arange(self.rows + 1))
        matrix.start_ = starts.astype(np.int32)
        matrix.index_ = column[order].astype(np.int32)
        matrix.value_ = value[order]

    def _sample_entries(self, k: int) -> _Entries:
        """The rows that order and end computations in sample k."""
        tail, head, last = self.graph.tail, self.graph.head, self.last
        samples = self.factor.shape[1]
        start = samples + k * len(self.graph)
        edge = k * len(tail) + np.arange(len(tail))
        ending = self.ends + k * len(last) + np.arange(len(last))
        one = np.ones(len(last))
        return [
            (edge, start + head, np.ones(len(edge))),
            (edge, start + tail, -np.ones(len(edge))),
            (edge, self.x_of[tail], -self.factor[tail, k]),
            (ending, start + last, one),
            (ending, self.x_of[last], self.factor[last, k]),
            (ending, np.full(len(last), k), -one),
            (np.array([self.mean]), np.array([k]), np.array([1 / samples])),
        ]

    def _group_entries(self) -> _Entries:
        """The rows that mix points and make times of them."""
        entries = []
        for g, group in enumerate(self.groups):
            points = self.first_weight[g] + np.arange(len(group.cost))
            entries.append((np.full(len(points), self.mix + g), points, np.ones(len(points))))
            for k, times in enumerate(group.time):
                x = self.first_x[g] + k
                row = np.full(len(points) + 1, self.times + x - self.first_x[0])
                entries.append((row, np.append(points, x), np.append(-times * self.second, 1.0)))
        return entries

    def read(self, cost: float, value: Floats, row_dual: Floats) -> Relaxed:
        n, samples = self.factor.shape
        row_dual = row_dual * (self.second / self.joule)
        edge = np.maximum(row_dual[: self.ends], 0.0).reshape(samples, -1)
        last = np.zeros((samples, n))
        last[:, self.last] = np.maximum(-row_dual[self.ends : self.mean], 0.0).reshape(samples, -1)
        price = np.zeros(n)
        for k in range(samples):
            out = np.bincount(self.graph.tail, edge[k], minlength=n) + last[k]
            price += self.factor[:, k] * out
        return Relaxed(cost / self.joule, value[self.x_of] / self.second, price, edge, last)
