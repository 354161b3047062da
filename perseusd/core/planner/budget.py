"""What a budget of clock writes can save at most, certified, and the prices that prove it.

At any flow through the graph (bound.py) the ranks separate, and each one's best runs are found
exactly by dynamic programming (budget_kernels.best_runs), whatever its number of writes N:

    cost ≥ Σ_ranks min over options with ≤ N writes of Σ_i [ cost(i) + φ(i) · time(i) ]
           + Σ f(i, j) · lag(i, j) − D · Φ

The right side is concave in the flow, and is raised in the manner of the volume algorithm (Barahona
and Anbil, 2000): the durations of the priced optima are averaged, and the best flow so far is
tilted towards the paths that are long at the average. A tilt by exp(scale · length) is a step of
mirror descent in the entropy of the flow over its paths: what it leads to is a flow again.
At the end the average is nearly the best mix of plans that keep the budget, and on time: that is
where to look for one plan (starts.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perseusd.core.planner import budget_kernels as kernels
from perseusd.core.planner.bound import checked_price, timing_value
from perseusd.core.planner.cuts import best_options
from perseusd.core.planner.instance import Instance
from perseusd.core.planner.relax import Relaxed

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_STEPS = 150  # after which the bound moves by less than 0.05 % of the energy on every real profile
_MEMORY = 0.99  # of the average that is kept when a new optimum joins it
# How sharply a flow is tilted: the exponent per thousandth of the deadline. It grows with every
# tilt that raises the bound, and shrinks when several in a row did not.
_FIRST_TILT, _MOST_TILT, _LEAST_TILT = 1.0, 4.0, 0.1
_GROWTH, _SHRINKAGE, _PATIENCE = 1.3, 0.8, 4
# The whole flow's logarithm changes at most so much in a step, down and up.
_CALMER, _STRONGER = -0.3, 0.1
# Times the mean power at full clock: where a relaxation's flow is none, a budget may need one.
_LEAST_FLOW = 0.1


@dataclass(frozen=True)
class BudgetLimit:
    """What no plan within the writes can undercut, and what is known of the plans near it.

    cost_bound: J; of costs, as in Instance.total_cost.
    edge_flow: (edges,), last_flow: (n,) and price: (n,) J/s prove it.
    option: (n,) the priced optimum: within the writes, but perhaps late.
    durations: (n,) average over the priced optima: nearly on time, of about that cost.
    """

    cost_bound: float
    edge_flow: Floats
    last_flow: Floats
    price: Floats
    option: Ints
    durations: Floats

    @property
    def deadline_price(self) -> float:
        """Joules that one more second until the deadline saves."""
        return float(self.last_flow.sum())


def limit(
    inst: Instance,
    relaxed: Relaxed,
    max_writes: int,
    *,
    steps: int = _STEPS,
    more_time: Callable[[], bool] = lambda: True,
) -> BudgetLimit:
    """The best bound found for plans of at most `max_writes` writes per rank.

    It holds with noise too: the mean of longest paths is no less than the longest path of means.
    relaxed: of free clocks; where it begins.  more_time: asked before each step.
    """
    ascent = _Ascent(inst, relaxed, max_writes)
    for _ in range(steps):
        if ascent.proven or not more_time():
            break
        ascent.step()
    return ascent.best


def proven_cost(inst: Instance, max_writes: int, edge_flow: Floats, last_flow: Floats) -> float:
    """The least cost that this flow proves of every plan of at most `max_writes` writes per rank.

    Plain array code that shares nothing with the kernels. Raises PlanningError for a flow that
    proves nothing.
    """
    network = inst.network
    price = checked_price(network, edge_flow, last_flow)
    total = timing_value(network, inst.deadline_s, edge_flow, last_flow, price)
    priced = inst.cost + price[:, None] * inst.time
    for nodes in inst.graph.order:
        usable = int(inst.full[nodes[0]]) + 1
        total += _least(priced[nodes, :usable], max_writes, inst.problem.full_clock_at_end)
    return total


def _least(priced: Floats, max_writes: int, full_clock_at_end: bool) -> float:
    """The least sum over one rank's (positions, options) with at most so many writes.

    The clock before the first position and after the last is full clock, the last option; or any
    one option, the best of all: a rank that begins and ends at other clocks gains nothing by it.
    """
    positions, count = priced.shape
    max_writes = min(max_writes, positions + 1)
    outside = np.array([count - 1]) if full_clock_at_end else np.arange(count)
    each = np.arange(len(outside))
    value = np.full((len(outside), max_writes + 1, count), np.inf)  # by option outside, writes
    value[:, 1:] = priced[0]
    value[each, :, outside] = priced[0, outside, None]
    for row in priced[1:]:
        least = value.min(axis=2, keepdims=True)
        value[:, 1:] = np.minimum(value[:, 1:], least[:, :-1])
        value += row
    closed = float(value[each, -1, outside].min())
    return min(closed, float(value[:, :-1].min(initial=np.inf)))


class _Ascent:
    """The best flow so far, and the average of what it and its trials led to."""

    best: BudgetLimit

    def __init__(self, inst: Instance, relaxed: Relaxed, max_writes: int) -> None:
        self._inst, self._writes = inst, max_writes
        network = inst.network
        edge, last = np.zeros(len(network.lag)), np.zeros(len(network))
        self.best = self._bound(edge, last, relaxed.durations)
        ends = inst.graph.makespan(inst.durations(self.best.option))
        #: a priced optimum at no price that is on time is the cheapest plan there is
        self.proven = bool(ends <= inst.deadline_s)
        if self.proven:
            return
        energy = inst.energy(inst.total_cost(inst.full))
        self._least_flow = _LEAST_FLOW * abs(energy) / inst.deadline_s
        self._tilt, self._failed = _FIRST_TILT, 0
        self._average = relaxed.durations
        self._try(relaxed.edge_flow[0], relaxed.last_flow[0], 0.0)

    def step(self) -> None:
        """Tilt the best flow towards the average's long paths."""
        if self._try(self.best.edge_flow, self.best.last_flow, self._tilt):
            self._tilt, self._failed = min(_MOST_TILT, _GROWTH * self._tilt), 0
            return
        self._failed += 1
        if self._failed == _PATIENCE:
            self._tilt, self._failed = max(_LEAST_TILT, _SHRINKAGE * self._tilt), 0

    def _try(self, edge: Floats, last: Floats, tilt: float) -> bool:
        """Tilt a flow; does it prove more?"""
        inst = self._inst
        edge, last = edge.copy(), last.copy()
        scale = 1e3 * tilt / inst.deadline_s
        before = max(float(last.sum()), self._least_flow)
        network = inst.network
        grown = kernels.tilted(
            network.tail,
            network.lag,
            network.into_first,
            network.into_edge,
            network.from_first,
            network.from_edge,
            self._average,
            scale,
            edge,
            last,
        )
        growth = min(max(grown - scale * inst.deadline_s, _CALMER), _STRONGER)
        through = before * float(np.exp(growth))
        found = self._bound(edge * through, last * through, self._average)
        self._average = found.durations
        better = found.cost_bound > self.best.cost_bound
        # The average goes on even when the flow does not.
        kept = found if better else self.best
        self.best = BudgetLimit(
            kept.cost_bound, kept.edge_flow, kept.last_flow, kept.price, kept.option, self._average
        )
        return better

    def _bound(self, edge: Floats, last: Floats, average: Floats) -> BudgetLimit:
        inst = self._inst
        price = np.bincount(inst.network.tail, edge, minlength=len(last)) + last
        option, value = best_options(inst, self._writes, price)
        value += float(edge @ inst.network.lag) - inst.deadline_s * float(last.sum())
        joined = _MEMORY * average + (1 - _MEMORY) * inst.durations(option)
        return BudgetLimit(value, edge, last, price, option, joined)
