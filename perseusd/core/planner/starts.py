"""First plans within a budget of clock writes, from what the budget's limit knows.

The limit's prices are indifferent between the clocks that its mixed optimum mixes; the squared
distance from the mix's durations, in units of each curve's curvature, decides, and leads to cuts
whose own best mix is nearly the limit. What is left is to be on time with clocks that exist:

- the largest share of the mix's slowdown for which the cut, made anew each time, is not late; and
  as clocks that exist are all a little too slow or too fast for that, all of the slowdown up to a
  moment (or from one on) and a smaller share in the rest, with the moment to match;
- from the best of these a descent at a rising price of lateness (starts_kernels.settle).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from perseusd.core.planner import starts_kernels as kernels
from perseusd.core.planner.budget import BudgetLimit
from perseusd.core.planner.cuts import Guide, cut
from perseusd.core.planner.hull import curvature
from perseusd.core.planner.hulls import Hulls
from perseusd.core.planner.instance import Instance

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Weights of the distance from the mix, in units of each curve's curvature. About as stiff as the
# curve itself is best on most jobs; none is best on all.
_STIFFNESS = (1.0, 4.0, 16.0)
_HALVINGS = 7  # of the share of the slowdown, or of the time, that is not late
# What is left of the share that alone is not late, where the rest of the time has all of it.
_LESS = (1.0, 0.8)
_SETTLED = 6  # so many of the cheapest cuts are descended from
# Prices of lateness to descend at, in units of what the limit says a second is worth (of the power
# at full clock at least): a low one lets a plan be late for a while, on the way to a better one.
_LATE_PRICES = 1.5 ** np.arange(12)
_LATE = 1e-12  # relative: the evaluator's sums in another order differ by about 1e-15


def starts(
    inst: Instance,
    limit: BudgetLimit,
    max_writes: int,
    write_price_j: float,
    more_time: Callable[[], bool],
) -> list[tuple[Ints, Ints]]:
    """(start, safe) pairs of (n,) options within the writes, best first; at least one, none twice.

    A start is not late without noise. What is safe is not late on the samples of the noise either:
    the start itself, or the best found.
    limit: of the same number of writes.
    write_price_j: what one clock write must save.
    more_time: asked now and then; without more, the best so far are returned.
    """
    maker = _Maker(inst, limit, max_writes, write_price_j, more_time)
    found = {option.tobytes(): option for option in maker.settled()}
    options = sorted(found.values(), key=maker.value)
    if maker.on_time(options[0]):
        return [(option, option if maker.on_time(option) else inst.full) for option in options]
    safe = min(maker.cuts(_STIFFNESS, maker.on_time), key=maker.value)
    return [(safe, safe), *((option, safe) for option in options)]


def _curvatures(inst: Instance) -> Floats:
    """(n,) of each computation's own curve."""
    hulls = Hulls.of(inst.problem, inst.graph)
    bend = [
        curvature(hulls.time[first:last], hulls.cost[first:last])
        for first, last in pairwise(hulls.first.tolist())
    ]
    return np.array(bend)[inst.network.kind]


class _Maker:
    """Makes plans near the limit's mix."""

    def __init__(
        self,
        inst: Instance,
        limit: BudgetLimit,
        max_writes: int,
        write_price_j: float,
        more_time: Callable[[], bool],
    ) -> None:
        self._inst, self._limit, self._more_time = inst, limit, more_time
        self._writes, self._write_price = max_writes, write_price_j
        self._bend = _curvatures(inst)
        self._fastest = inst.durations(inst.full)
        self._slowdown = limit.durations - self._fastest
        self._when = inst.graph.earliest(limit.durations) / inst.tightest_s

    def value(self, option: Ints) -> float:
        """Cost with the price of its clock writes, in joules."""
        inst = self._inst
        return inst.total_cost(option) + self._write_price * inst.total_writes(option)

    def on_time(self, option: Ints) -> bool:
        """On the samples of the noise."""
        inst = self._inst
        return bool(inst.iteration_time(option) <= inst.deadline_s * (1 + _LATE))

    def calm(self, option: Ints) -> bool:
        """On time without noise."""
        inst = self._inst
        return bool(inst.graph.makespan(inst.durations(option)) <= inst.tightest_s * (1 + _LATE))

    def settled(self) -> Iterator[Ints]:
        """A few times (n,) options that are on time without noise."""
        cuts = {option.tobytes(): option for option in self.cuts(_STIFFNESS, self.calm)}
        for option in sorted(cuts.values(), key=self.value)[:_SETTLED]:
            yield self._settled(option)

    def cuts(self, stiffnesses: Sequence[float], on_time: Callable[[Ints], bool]) -> Iterator[Ints]:
        """(n,) options that are on time, at least once; as said at the head of this file."""
        if on_time(self._limit.option):
            yield self._limit.option
        for stiffness in stiffnesses:
            weight = stiffness * self._bend
            option, share = self._slowest(weight, on_time, lambda share: share)
            yield option
            for when, less in itertools.product((self._when, 1 - self._when), _LESS):
                if not self._more_time():
                    return

                def split(moment: float, when: Floats = when, less: float = less * share) -> Floats:
                    return np.where(when < moment, 1.0, less)

                yield self._slowest(weight, on_time, split)[0]

    def _slowest(
        self,
        weight: Floats,
        on_time: Callable[[Ints], bool],
        share: Callable[[float], float | Floats],
    ) -> tuple[Ints, float]:
        """The cheapest (n,) options found that are on time, and the largest number that led there.

        share: of the mix's slowdown, () or (n,), growing with a number from 0 to 1.
        """
        best, low, high = self._inst.full, 0.0, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            target = self._fastest + share(middle) * self._slowdown
            guide = Guide(target, self._limit.price, weight)
            option = cut(self._inst, guide, self._writes, self._write_price)
            if on_time(option):
                best, low = min(best, option, key=self.value), middle
            else:
                high = middle
        return best, low

    def _settled(self, option: Ints) -> Ints:
        inst, network = self._inst, self._inst.network
        tables = (
            network.tail,
            network.lag,
            network.into_first,
            network.into_edge,
            network.rank_first,
            network.rank_node,
            network.kind,
            inst.full,
            inst.kind_time,
            inst.kind_cost,
        )
        at_end = inst.problem.full_clock_at_end
        latest = inst.tightest_s * (1 + _LATE)
        power = inst.energy(inst.total_cost(inst.full)) / inst.deadline_s
        option, best = option.copy(), option.copy()
        least = self.value(best)
        for late_price in (max(self._limit.deadline_price, power) * _LATE_PRICES).tolist():
            if not self._more_time():
                break
            rules = (latest, self._writes, at_end, self._write_price, late_price)
            least = kernels.settle(tables, rules, least, option, best)
        return best
