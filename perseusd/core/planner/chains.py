"""Better plans for free clocks: whole chains of computations timed anew, exactly.

Computations that wait for the same ones start at one *event*; a computation lies between the event
at which it starts and those that wait for it, and costs what its cheapest point costs that fits in
between. So a plan is a time for every event. Along a *chain* of events, each the end of a
computation that starts at the one before, dynamic programming finds the best times given those of
all other events: everything that starts or ends at the chain is chosen anew with it. Chains are
each rank's whole order, and paths that change rank wherever they can.

This is coordinate descent: it stops where no single chain can be bettered. To get further, some
rounds put a part of the relaxation's price on time itself, so that room is left where it is worth
most, and later rounds fill it. Jobs of few computations end with branch and bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseusd.core.planner import chains_kernels as kernels
from perseusd.core.planner import events_kernels, first_kernels
from perseusd.core.planner.branching import branched
from perseusd.core.planner.events import Layout
from perseusd.core.planner.instance import Instance
from perseusd.core.planner.network import Network
from perseusd.core.planner.points import Points
from perseusd.core.planner.relax import Relaxed

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Options = NDArray[np.intp]

_LATE = 1e-12
_BUCKETS = 96
# How far an event may be moved at once, of the mean difference between the slowest and the fastest
# point of the computations around it.
_REACH = 0.5
# The points that a computation may take: so many points, and corners of its hull, to either side
# of the relaxation's. Where a curve is far from its hull the next corner is many points away.
_POINTS, _CORNERS = 4, 3
# Rounds over all chains: where between earliest and latest the events are put first, and the share
# of the price that is put on time.
_ROUNDS = ((0.5, 0.0), (0.0, 0.6), (1.0, 0.6), (0.5, 0.3), (0.0, 0.0), (1.0, 0.0))
# Then from the best plan again, with a random share of the price for each kind, or each
# computation, to get away from where no chain can be bettered: as often as small jobs can afford.
_AGAIN = ((0.5, 1.0), (0.0, 0.5), (1.0, 0.0), (0.5, 0.0))
_AGAIN_COMPUTATIONS, _AGAIN_MOST = 3000, 24
_SEED = 0
# Jobs of so few computations are tried by branch and bound, so many assignments at most.
_FEW, _ASSIGNMENTS = 48, 200_000


def improve(
    inst: Instance,
    relaxed: Relaxed,
    option: Options,
    more_time: Callable[[], bool],
    good_enough_cost: float = -np.inf,
) -> Options:
    """(n,) options, no dearer than (n,) `option` and not late without noise.

    relaxed: of free clocks and the same deadline; its prices guide, its bound ends the search.
    more_time: asked between chains; once false, the best so far is the answer.
    """
    search = _Chains(inst, relaxed, option)
    enough = max(good_enough_cost, relaxed.bound)
    for _ in search.steps():
        if search.best_cost <= enough or not more_time():
            break
    return search.options()


class _Chains:
    """What the kernels work on, and the best plan so far.

    best: (n,) points, not late.  best_cost: theirs.
    """

    def __init__(self, inst: Instance, relaxed: Relaxed, option: Options) -> None:
        self.network, self.points, self.layout = (
            inst.network,
            Points.of(inst),
            Layout.of(inst.network),
        )
        self.kind = self.network.kind
        self.menu = self.points.time, self.points.cost
        self.deadline_s = inst.tightest_s * (1 + _LATE)
        self.relaxed = relaxed
        self.phi = np.ascontiguousarray(relaxed.price)
        self.low, self.high = self.points.around(self.kind, self.phi, _POINTS, _CORNERS)
        n, ends, events = len(self.kind), self.layout.ends, self.layout.events
        self.price = np.zeros(n)
        self.state = (np.zeros(events), np.zeros(n), np.zeros(ends), self.price, self._reach())
        self.families = _ranks(self.network), _crossings(self.network)
        self.room = _room(self.families, self.layout, self.points)
        self.best = self.points.choice[self.kind, option]
        if self._makespan(self.best) > self.deadline_s:
            self.best = self.points.choice[self.kind, inst.full]
        self.best_cost = self.points.total_cost(self.kind, self.best)

    def options(self) -> Options:
        return self.points.option[self.kind, self.best].astype(np.intp)

    def steps(self) -> Iterator[None]:
        """Yields after every chain."""
        n, kinds = len(self.kind), len(self.points.count)
        yield from self._rounds(_ROUNDS, np.ones(n))
        draw = np.random.default_rng(_SEED)
        for again in range(min(_AGAIN_MOST, _AGAIN_COMPUTATIONS // n)):
            share = draw.random(n) if again % 2 else draw.random(kinds)[self.kind]
            yield from self._rounds(_AGAIN, share)
        if n <= _FEW:
            problem = self.network, self.points, self.relaxed, self.deadline_s
            self._keep_if_best(branched(*problem, self.best, _ASSIGNMENTS))
            yield

    def _rounds(self, rounds: Sequence[tuple[float, float]], share: Floats) -> Iterator[None]:
        chosen = self.best.copy()
        for between, priced in rounds:
            self.price[:] = priced * share * self.phi
            for family in self.families:
                self._time(chosen, between)
                low, high = np.minimum(self.low, chosen), np.maximum(self.high, chosen)
                for chain in family:
                    if self._retime(chain, (chosen, low, high)) > 0:
                        self._keep_if_best(chosen)
                    yield

    def _keep_if_best(self, chosen: Ints) -> None:
        cost = self.points.total_cost(self.kind, chosen)
        if cost < self.best_cost and self._makespan(chosen) <= self.deadline_s:
            self.best, self.best_cost = chosen.copy(), cost

    def _makespan(self, chosen: Ints) -> float:
        network, end = self.network, np.zeros(len(chosen))
        walk = network.into_first, network.into_edge, network.tail, network.lag
        first_kernels.ends(1, *walk, self.points.time[self.kind, chosen], end)
        return float(end.max())

    def _time(self, chosen: Ints, between: float) -> None:
        """Put the events where these points have them."""
        network = self.network
        edges = (network.into_first, network.into_edge, network.tail, network.head)
        events_kernels.time_events(
            self.layout.arrays,
            self.state,
            self.menu,
            chosen,
            self.deadline_s,
            between,
            (*edges, self.layout.end_of_edge),
            network.lag,
        )

    def _retime(self, chain: Ints, choice: tuple[Ints, Ints, Ints]) -> float:
        layout, deadline_s = self.layout.arrays, self.deadline_s
        return kernels.retime_chain(
            layout, self.state, self.menu, choice, deadline_s, chain, *self.room
        )

    def _reach(self) -> Floats:
        """(events,) seconds."""
        _, event, _, _, _, end_event, _, _, end_of = self.layout.arrays
        spread = self.points.spread()[self.kind]
        around = np.concatenate([event, end_event])
        total = np.bincount(around, np.concatenate([spread, spread[end_of]]), self.layout.events)
        reach: Floats = _REACH * total / np.bincount(around, minlength=self.layout.events)
        return reach


def _room(families: Sequence[Sequence[Ints]], layout: Layout, points: Points) -> tuple[Any, ...]:
    """What kernels.retime_chain works in."""
    near, width = layout.most_near, points.time.shape[1]
    stops = (1 + max(len(chain) for family in families for chain in family), _BUCKETS)
    return (
        np.zeros(layout.events, dtype=np.bool_),
        np.empty((2, near), dtype=np.int64),
        (np.empty((1, near * width + 1)), np.empty((2, near)), np.empty((near, width))),
        np.empty((2, _BUCKETS)),
        np.empty((2, _BUCKETS), dtype=np.int64),
        (np.empty(stops), np.empty(stops)),
        (np.empty(stops, dtype=np.int64), np.empty(stops, dtype=np.int64)),
    )


def _ranks(network: Network) -> list[Ints]:
    return np.split(network.rank_node, network.rank_first[1:-1])


def _crossings(network: Network) -> list[Ints]:
    """Disjoint paths that cover all nodes and go on to another rank wherever that is still free."""
    following = np.full(len(network), -1, dtype=np.int64)
    starts = np.empty(len(network), dtype=np.int64)
    leaving = network.from_first, network.from_edge, network.head
    count = events_kernels.find_crossings(*leaving, network.rank, following, starts)
    return [events_kernels.follow(following, int(node)) for node in starts[:count]]
