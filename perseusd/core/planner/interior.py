"""The relaxation of the deadline problem with a clock for every computation, solved exactly.

Computation i lasts x(i) beyond its fastest, the sum of its hull's segments (segments.py), and
starts s(i) after its earliest start at full speed. Every *arc* a has slack r and flow f:

    s(h) − s(t) − x(t) + room = r ≥ 0     a precedence t → h
    s(h) + room = r ≥ 0                    h follows nothing: it starts at 0 or later
    room − s(t) − x(t) = r ≥ 0             nothing follows t: it ends by the deadline
    Σ f into i = φ(i) = Σ f out of i,      f · r = μ

where room is the slack with everything at its fastest. This is a linear program, and a primal-dual
interior point method solves it (Mehrotra, 1992; the predictor's products are trusted as far as the
predictor could step, after Colombo and Gondzio, 2008). Linearised, flows and segments drop out by
hand: with stiffness f/r an arc is a spring, with flexibility dx/dφ a computation is one too, and a
step is how far a network of springs moves (springs.py). Times are taken beyond the fastest, so that
nothing is lost to rounding however little there is to choose. At the shortest deadline nothing on
the critical path could move at all; there the program gets a little more time than there is.

What is returned relies on none of this: durations are fitted to the deadline (times.py) and the
flow, made to conserve, is checked for what it proves (bound.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perseusd.core.planner.bound import certified_bound, checked_price, conserved
from perseusd.core.planner.hulls import Hulls
from perseusd.core.planner.network import Network
from perseusd.core.planner.relax import Relaxed
from perseusd.core.planner.segments import Aim, Segments
from perseusd.core.planner.springs import Arcs, Springs
from perseusd.core.planner.times import earliest_starts, fitted, latest_starts, makespan
from perseusd.errors import PlanningError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_ACCURACY = 2e-5  # of the energy: the gap between cost and bound that is good enough
_LOOK = 20.0  # times that: the products' sum below which cost and bound are worked out
_PROGRESS = 0.02  # of the accuracy: what a step has to improve, or it counts as stalled
_STALLED = 8  # steps in a row
_STEPS = 80  # at most; 8 to 20 are usual
_LATE = 1e-9  # relative: a deadline this much below the shortest is the shortest
# Of the time between the shortest deadline and the last one that matters, what the program gets
# at least. Its price is far below the accuracy unless hulls have segments as short as this.
_LEAST_TIME = 1e-9
# The first point: of the deadline's share of that time, the part that is used, the least share, and
# the least slack of an arc in units of the mean computation's longest x.
_START_PART, _START_SHARE, _START_SLACK = 0.9, 0.05, 0.1
_LEAST_FLOW = 1e-3  # of the mean price: a first flow
_BACK_OFF = 0.99  # of the way to where something becomes 0
_LEAST_CENTRE = 1e-6  # of μ: the least that is aimed at


def relax_free(
    network: Network, hulls: Hulls, deadline_s: float, *, energy_scale_j: float | None = None
) -> Relaxed:
    """The least cost of mixed clocks by the deadline, a clock for every computation, no noise.

    hulls: of the network's kinds.
    energy_scale_j: of what cost and bound may differ by 2e-5; None: of the difference between
        everything at its fastest and everything at its cheapest.
    The durations keep the deadline and lie on the hulls; `cost` is theirs. `bound` is certified,
    and price and flow are those that prove it. Where numbers are so extreme that no accurate
    solution is found, cost and bound lie further apart and still hold.
    Raises PlanningError, saying what the shortest is, for a deadline below the shortest.
    """
    choice = _Choice.of(network, hulls)
    if not deadline_s >= choice.shortest_s * (1 - _LATE):
        raise PlanningError(
            f"no clocks keep the deadline of {deadline_s:.6g} s: "
            f"the shortest is {choice.shortest_s:.6g} s"
        )
    best = _Best(network, hulls, deadline_s)
    if choice.longest_s <= deadline_s:
        best.offer(choice.longest, np.zeros(len(network.lag)), np.zeros(len(network)))
    else:
        accuracy = _ACCURACY * (energy_scale_j or choice.spread_j)
        with np.errstate(all="ignore"):  # what comes of it is checked
            _Descent(network, hulls, choice, deadline_s).run(best, accuracy)
    return best.relaxed()


@dataclass(frozen=True)
class _Choice:
    """What there is to choose between.

    fastest, slowest: (n,) durations at the ends of each computation's hull.
    shortest_s, longest_s: the makespans of these.  longest: (n,) ends of the latter.
    spread_j: what the latter cost less than the former.
    """

    fastest: Floats
    slowest: Floats
    shortest_s: float
    longest_s: float
    longest: Floats
    spread_j: float

    @classmethod
    def of(cls, network: Network, hulls: Hulls) -> _Choice:
        first, last = hulls.first[:-1], hulls.first[1:] - 1
        fastest, slowest = hulls.time[first][network.kind], hulls.time[last][network.kind]
        longest = earliest_starts(network, slowest) + slowest
        return cls(
            fastest=fastest,
            slowest=slowest,
            shortest_s=makespan(network, fastest),
            longest_s=float(longest.max()),
            longest=longest,
            spread_j=float((hulls.cost[first] - hulls.cost[last])[network.kind].sum()),
        )


class _Best:
    """The least cost and the greatest bound so far, and what they come from."""

    def __init__(self, network: Network, hulls: Hulls, deadline_s: float) -> None:
        self._network, self._hulls, self._deadline_s = network, hulls, deadline_s
        self.cost, self.bound = np.inf, -np.inf
        self._durations = self._edge = self._last = np.empty(0)

    def offer(self, ends: Floats, edge_flow: Floats, last_flow: Floats) -> float:
        """Try (n,) ends and a flow, neither of which needs to be feasible: joules gained."""
        network, before = self._network, self.cost - self.bound
        durations, cost = fitted(network, self._hulls, ends, self._deadline_s)
        if cost < self.cost:
            self.cost, self._durations = cost, durations
        edge, last = conserved(network, edge_flow, last_flow)
        bound = certified_bound(network, self._hulls, self._deadline_s, edge, last)
        if bound > self.bound:
            self.bound, self._edge, self._last = bound, edge, last
        return before - (self.cost - self.bound)

    def relaxed(self) -> Relaxed:
        price = checked_price(self._network, self._edge, self._last)
        flow = self._edge[None], self._last[None]
        return Relaxed(self.cost, self._durations, price, *flow, self.bound)


class _Descent:
    """A point of the method and the steps from it; see the head of this file.

    Times are in units of what the deadline can matter by, costs of the mean computation's spread.
    """

    def __init__(self, network: Network, hulls: Hulls, choice: _Choice, deadline_s: float) -> None:
        self._second = choice.longest_s - choice.shortest_s
        self._joule = choice.spread_j / len(network)
        self._arcs = Arcs(network)
        self._springs = Springs(network, self._arcs)
        self._segments = Segments(hulls, network.kind, self._second, self._joule)
        start = earliest_starts(network, choice.fastest)
        self._earliest_end = start + choice.fastest
        given = max(deadline_s, choice.shortest_s + _LEAST_TIME * self._second)
        self._begin_slack(network, choice, start, given)
        self._begin_flow(network, choice)

    def _begin_slack(
        self, network: Network, choice: _Choice, earliest: Floats, deadline_s: float
    ) -> None:
        """Half way between earliest and latest starts, at durations which are in time."""
        arcs = self._arcs
        head = np.append(earliest, deadline_s)[arcs.head]
        tail = np.append(self._earliest_end, 0.0)[arcs.tail]
        lag = np.append(network.lag, np.zeros(len(head) - arcs.edges))
        self._room = np.maximum(head - tail - lag, 0.0) / self._second
        share = (deadline_s - choice.shortest_s) / self._second
        durations = choice.fastest + share * (choice.slowest - choice.fastest)
        latest = latest_starts(network, durations, deadline_s)
        between = (earliest_starts(network, durations) + latest) / 2
        self._start = (between - earliest) / self._second
        self._share = max(_START_SHARE, _START_PART * share)
        longest = (choice.slowest - choice.fastest) / self._second
        least = _START_SLACK * float(longest.mean())
        self._slack = np.maximum(self._actual_slack(self._share * longest), least)

    def _begin_flow(self, network: Network, choice: _Choice) -> None:
        """Split evenly at every node, as much as makes prices like the hulls' mean slopes."""
        arcs = self._arcs
        share = 1.0 / np.maximum(np.diff(network.from_first), 1)
        edge, last = conserved(network, share[network.tail], arcs.at_lasts(np.ones(len(arcs.tail))))
        price = checked_price(network, edge, last)
        flow = np.concatenate([edge, price[arcs.sources], last[arcs.lasts]])
        longest = (choice.slowest - choice.fastest) / self._second
        scale = len(network) / float((price * longest).sum())
        self._flow = scale * np.maximum(flow, _LEAST_FLOW * float(price.mean()))
        centre = float((self._slack * self._flow).mean())
        self._segments.start(arcs.out_of(self._flow), self._share, centre)

    def run(self, best: _Best, accuracy: float) -> None:
        """Step until `best` is within `accuracy` (joules), or gets no better."""
        stalled = 0
        pairs = len(self._flow) + 2 * self._segments.count
        for left in range(_STEPS, -1, -1):
            products = float((self._slack * self._flow).sum()) + self._segments.products()
            gap = products * self._joule  # once everything is feasible
            # Asked so that what is no number ends it.
            done = left == 0 or not gap > 0.0
            if done or gap < _LOOK * accuracy:
                gained = self._offer(best)
                stalled = stalled + 1 if gained < _PROGRESS * accuracy and gap < accuracy else 0
                if done or stalled == _STALLED or best.cost - best.bound <= accuracy:
                    return
            self._step(products / pairs, pairs)

    def _offer(self, best: _Best) -> float:
        end = self._earliest_end + self._second * (self._start + self._segments.durations)
        flow = self._flow * (self._joule / self._second)
        return best.offer(end, flow[: self._arcs.edges], self._arcs.at_lasts(flow))

    def _step(self, mu: float, pairs: int) -> None:
        arcs, slack, flow = self._arcs, self._slack, self._flow
        price = arcs.out_of(flow)
        excess = arcs.into(flow) - price
        stiff = flow / slack
        missing = self._actual_slack(self._segments.durations) - slack

        aim = Aim(0.0, 0.0, np.zeros(arcs.n))
        flex, free = self._segments.respond(price, aim)
        self._springs.set(stiff, flex)
        ahead = self._springs.move(free, -flow - stiff * missing, missing, excess)
        reach = self._segments.step(price, aim, ahead.price)
        primal = 1.0 / max(1.0, reach.primal, float((-ahead.slack / slack).max()))
        dual = 1.0 / max(1.0, reach.dual, float((-ahead.flow / flow).max()))

        now, by_primal, by_dual, by_both = reach.products
        left = now + primal * by_primal + dual * by_dual + primal * dual * by_both
        left += float(((slack + primal * ahead.slack) * (flow + dual * ahead.flow)).sum())
        centre = mu * min(1.0, max(_LEAST_CENTRE, (left / (pairs * mu)) ** 3))
        aim = Aim(centre, min(primal, dual), ahead.price)
        _, free = self._segments.respond(price, aim)
        force = (centre - aim.trust * ahead.slack * ahead.flow) / slack - flow - stiff * missing
        move = self._springs.move(free, force, missing, excess)
        reach = self._segments.step(price, aim, move.price)
        primal = _BACK_OFF / max(_BACK_OFF, reach.primal, float((-move.slack / slack).max()))
        dual = _BACK_OFF / max(_BACK_OFF, reach.dual, float((-move.flow / flow).max()))
        self._segments.advance(primal, dual)
        self._start += primal * move.start
        self._slack += primal * move.slack
        self._flow += dual * move.flow

    def _actual_slack(self, durations: Floats) -> Floats:
        arcs = self._arcs
        leaving = arcs.at_tail(self._start + durations)
        slack: Floats = arcs.at_head(self._start) - leaving + self._room
        return slack
