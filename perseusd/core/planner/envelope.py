"""The least cost by any deadline, held between two convex curves.

cost(D), the relaxation's least cost by the deadline D, is convex and falls with D. One solve at a
deadline bounds all of it:

- above: its durations end by D at their cost on the hulls, and so do, by convexity, the mixtures
  of two solves' durations: the chord between two points of the curve lies above it;
- below: its flow with Φ through the deadline proves `cost ≥ base − D · Φ` of every deadline
  (bound.py): a tangent. Mixtures of two flows conserve too, so they are flows, and as `base` is
  concave a mixture proves more than the mixture of what the two prove.

The largest distance between the curves is at a corner of the lower one: solving there closes it
(the sandwich algorithm; Rote, Computing 48, 1992).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perseusd.core.planner.compiled import compiled
from perseusd.core.planner.hull import lower_hull
from perseusd.core.planner.hulls import Hulls

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Mixtures of two neighbouring solves, tried before anything is solved between them.
_MIXTURES = (0.25, 0.5, 0.75)
# Solves after which the curves are taken as they are: with a solver that is far from exact they
# may never meet. Ten are usual.
_MOST_SOLVES = 100
# Of the accuracy, at the least-energy time, where the curve is so flat that its place says little;
# but nothing finer than this, which is about what a solve is worth.
_AT_LEAST, _FINEST = 0.05, 5e-5
_SAME = 1e-6  # relative: a deadline this near to one that was solved is that one


@dataclass(frozen=True)
class Support:
    """Durations and a flow, and what they prove of the curve.

    time_s, cost: the durations end by time_s at this cost, J.  durations: (n,).
    base, slope: no plan costs less than base − slope · D, J and W.
    price: (n,) what leaves each node.  lags: Σ flow · lag over the edges, J.
    """

    time_s: float
    cost: float
    durations: Floats
    base: float
    slope: float
    price: Floats
    lags: float


@dataclass(frozen=True)
class Mixer:
    """Weighs up mixtures of supports.  kind: (n,) each computation's kind, of `hulls`."""

    hulls: Hulls
    kind: Ints

    def fastest(self) -> Ints:
        """(n,) the option of each computation's first point on its hull."""
        option: Ints = self.hulls.option[self.hulls.first[:-1]][self.kind]
        return option

    def cheapest(self) -> Ints:
        """(n,) the option of its last."""
        option: Ints = self.hulls.option[self.hulls.first[1:] - 1][self.kind]
        return option

    def mixture(self, one: Support, other: Support, share: float) -> Support:
        """`share` of the other, the rest of the one."""
        hulls, rest = self.hulls, 1.0 - share
        durations = rest * one.durations + share * other.durations
        price = rest * one.price + share * other.price
        lags = rest * one.lags + share * other.lags
        cost, least = weighed(hulls.first, hulls.time, hulls.cost, self.kind, durations, price)
        return Support(
            time_s=rest * one.time_s + share * other.time_s,
            cost=cost,
            durations=durations,
            base=least + lags,
            slope=rest * one.slope + share * other.slope,
            price=price,
            lags=lags,
        )


@compiled("UniTuple(f8, 2)(i8[::1], f8[::1], f8[::1], i8[::1], f8[::1], f8[::1])")
def weighed(
    first: Ints, time: Floats, cost: Floats, kind: Ints, durations: Floats, price: Floats
) -> tuple[float, float]:
    """What (n,) durations on the hulls cost, and Σ min (cost + price · time); see Hulls."""
    costs, least = 0.0, 0.0
    for i in range(len(kind)):
        low, high = first[kind[i]], first[kind[i] + 1] - 1
        best = np.inf
        for k in range(low, high + 1):
            best = min(best, cost[k] + price[i] * time[k])
        least += best
        k = low + 1
        while k < high and time[k] < durations[i]:
            k += 1
        if low == high:
            costs += cost[low]
        else:
            part = (durations[i] - time[k - 1]) / (time[k] - time[k - 1])
            costs += cost[k - 1] + min(max(part, 0.0), 1.0) * (cost[k] - cost[k - 1])
    return costs, least


@dataclass(frozen=True)
class Envelope:
    """Both curves.

    time_s, cost: the upper curve's corners, times ascending.
    base, slope: the lower curve's pieces, slopes descending, each the greatest somewhere.
    """

    time_s: Floats
    cost: Floats
    base: Floats
    slope: Floats

    @classmethod
    def of(cls, supports: Sequence[Support]) -> Envelope:
        time, cost = np.array([(s.time_s, s.cost) for s in supports]).T
        base, slope = np.array([(s.base, s.slope) for s in supports]).T
        above = lower_hull(time, cost)
        below = _greatest(base, slope)
        return cls(time[above], cost[above], base[below], slope[below])

    def upper(self, deadline_s: float) -> float:
        """J that a mix of clocks reaches. Deadlines before the first corner: its cost."""
        return float(np.interp(deadline_s, self.time_s, self.cost))

    def lower(self, deadline_s: float) -> float:
        """J below which no plan goes by the deadline."""
        return float((self.base - self.slope * deadline_s).max())

    def widest(self, waiting_power_w: float) -> tuple[float, float]:
        """(share of the energy, deadline) where the curves are farthest apart.

        Between two corners of the lower curve their distance is convex: only corners count.
        """
        at = self._corners()
        above = np.interp(at, self.time_s, self.cost)
        share = (above - self._below(at)) / (above + waiting_power_w * at)
        worst = int(share.argmax())
        return float(share[worst]), float(at[worst])

    def least(self, waiting_power_w: float) -> tuple[float, float]:
        """(share of the energy, deadline): where the lower curve's energy is least, and how far
        below the upper curve's least that is."""
        at = self._corners()
        below = self._below(at) + waiting_power_w * at
        above = float((self.cost + waiting_power_w * self.time_s).min())
        lowest = int(below.argmin())
        return (above - float(below[lowest])) / above, float(at[lowest])

    def _corners(self) -> Floats:
        """Both ends, and where the pieces of the lower curve meet."""
        meet = np.diff(self.base) / np.diff(self.slope)
        at: Floats = np.append(self.time_s[[0, -1]], meet)
        return np.clip(at, self.time_s[0], self.time_s[-1])

    def _below(self, at: Floats) -> Floats:
        lower: Floats = (self.base[:, None] - self.slope[:, None] * at).max(axis=0)
        return lower


def sandwich(
    first: Support,
    last: Support,
    mixer: Mixer,
    waiting_power_w: float,
    accuracy: float,
    solve: Callable[[float], Support],
) -> tuple[list[Support], Envelope]:
    """Solve between two supports until the curves are within `accuracy` of the energy everywhere,
    and within a part of that at the least-energy time.

    Returns the supports that were solved, times ascending, and the envelope.
    """
    solved, known = [first, last], [first, last]
    known += _between(mixer, first, last)
    for _ in range(_MOST_SOLVES):
        at = _worst(Envelope.of(known), waiting_power_w, accuracy)
        if at is None or min(abs(s.time_s - at) for s in solved) <= _SAME * at:
            break
        place = sum(s.time_s < at for s in solved)
        new = solve(at)
        known += [new, *_between(mixer, solved[place - 1], new)]
        known += _between(mixer, new, solved[place])
        solved.insert(place, new)
    return solved, Envelope.of(known)


def _worst(envelope: Envelope, waiting_power_w: float, accuracy: float) -> float | None:
    """The deadline to solve next; None where all is as accurate as asked."""
    gap, at = envelope.widest(waiting_power_w)
    if gap > accuracy:
        return at
    gap, at = envelope.least(waiting_power_w)
    return at if gap > max(_AT_LEAST * accuracy, _FINEST) else None


def _between(mixer: Mixer, one: Support, other: Support) -> list[Support]:
    return [mixer.mixture(one, other, share) for share in _MIXTURES]


def _greatest(base: Floats, slope: Floats) -> Ints:
    """Which lines base − slope · D are the greatest somewhere, slopes descending."""
    kept: list[int] = []
    for k in np.lexsort((-base, -slope)).tolist():
        if kept and slope[k] == slope[kept[-1]]:
            continue
        while len(kept) > 1 and not _rises_above(base, slope, kept[-2], kept[-1], k):
            kept.pop()
        kept.append(k)
    return np.array(kept, dtype=np.intp)


def _rises_above(base: Floats, slope: Floats, a: int, b: int, c: int) -> bool:
    """Is line b above both a and c somewhere? Slopes fall from a to c."""
    return bool(
        (base[a] - base[b]) * (slope[b] - slope[c]) < (base[b] - base[c]) * (slope[a] - slope[b])
    )
