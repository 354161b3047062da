"""The segments of all computations' hulls, as the interior point method has them (interior.py).

A segment is a variable y between 0 and its width; u = width − y is left of it, z and v are the
multipliers of these limits. At the price φ of its computation's time a segment of slope s has
s + φ = z − v, and on the central path y·z = u·v = μ. Once a step's dφ is known, so is all that
happens to a segment: with give = 1 / (z/y + v/u)

    dy = −give · (s + φ + dφ − Z + V),   dz = Z − z − z·dy/y,   dv = V − v + v·dy/u

where Z = (μ − trust · dy'·dz') / y and V = (μ + trust · dy'·dv') / u aim at the central path, dy',
dz', dv' being what the predictor did (Mehrotra, 1992); the predictor has Z = V = 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from perseusd.core.planner.compiled import compiled
from perseusd.core.planner.hulls import Hulls

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_Layout = tuple[Ints, Ints, Ints]


class Aim(NamedTuple):
    """Where a step should lead: μ, and how far to trust the predictor's products.

    price: (n,) the predictor's dφ.
    """

    centre: float
    trust: float
    price: Floats


class Reach(NamedTuple):
    """What a step of full length would do.

    primal, dual: it would take away at most these multiples of what y and u, or z and v, have.
    products: Σ y·z + u·v after steps of p and d is [0] + p·[1] + d·[2] + p·d·[3].
    """

    primal: float
    dual: float
    products: tuple[float, float, float, float]


class Segments:
    """Those of n computations; in units of `second` and `joule`.

    count: how many.  durations: (n,) beyond each computation's fastest.
    """

    def __init__(self, hulls: Hulls, kind: Ints, second: float, joule: float) -> None:
        inner = np.ones(len(hulls.time), dtype=bool)
        inner[hulls.first[1:] - 1] = False  # the last point of a hull begins no segment
        self._width = np.diff(hulls.time, append=0.0)[inner] / second
        self._slope = np.diff(hulls.cost, append=0.0)[inner] / (joule * self._width)
        slope_first = hulls.first - np.arange(len(hulls.first))
        first = np.append(0, np.cumsum(np.diff(slope_first)[kind]))
        self._layout: _Layout = (first, slope_first, kind)
        self.count = int(first[-1])
        self._state = np.empty((4, self.count))
        self._move = np.empty((3, self.count))
        self.durations = np.empty(len(kind))

    def start(self, price: Floats, share: float, centre: float) -> None:
        """At this share of every width, z and v as (n,) prices ask, products about `centre`."""
        start(self._layout, self._slope, self._width, price, share, centre, self._state)
        add_up(self._layout, self._state, self.durations)

    def products(self) -> float:
        """Σ y·z + u·v."""
        return products(self._state)

    def respond(self, price: Floats, aim: Aim) -> tuple[Floats, Floats]:
        """How durations follow prices: dx = free − flex · dφ, all (n,). (flex, free)"""
        flex, free = np.empty(len(price)), np.empty(len(price))
        respond(self._layout, self._slope, self._state, price, *aim, flex, free)
        return flex, free

    def step(self, price: Floats, aim: Aim, change: Floats) -> Reach:
        """Work out the step for (n,) dφ `change`, to be taken by `advance`."""
        primal, dual, *sums = step(
            self._layout, self._slope, self._state, price, *aim, change, self._move
        ).tolist()
        return Reach(primal, dual, tuple(sums))

    def advance(self, primal: float, dual: float) -> None:
        """Take these shares of the step last worked out."""
        advance(self._state, self._move, primal, dual)
        add_up(self._layout, self._state, self.durations)


@compiled("UniTuple(f8, 3)(f8, f8, f8, f8, f8, f8, f8, f8)", inner=True)
def _towards(
    y: float, u: float, z: float, v: float, pull: float, change: float, centre: float, trust: float
) -> tuple[float, float, float]:
    """give, Z and V of a segment; pull is s + φ, change the predictor's dφ."""
    by_y, by_u = 1.0 / y, 1.0 / u
    give = 1.0 / (z * by_y + v * by_u)
    if centre == 0.0:
        return give, 0.0, 0.0
    dy = -(pull + change) * give
    dz = -z - z * dy * by_y
    dv = -v + v * dy * by_u
    return give, (centre - trust * dy * dz) * by_y, (centre + trust * dy * dv) * by_u


@compiled(
    "void(UniTuple(i8[::1], 3), f8[::1], f8[:,::1], f8[::1], f8, f8, f8[::1], f8[::1], f8[::1])"
)
def respond(
    layout: _Layout,
    slope: Floats,
    state: Floats,
    price: Floats,
    centre: float,
    trust: float,
    predicted: Floats,
    flex: Floats,
    free: Floats,
) -> None:
    first, slope_first, kind = layout
    y, u, z, v = state
    for i in range(len(kind)):
        shift = slope_first[kind[i]] - first[i]
        flex[i] = free[i] = 0.0
        for k in range(first[i], first[i + 1]):
            pull = slope[k + shift] + price[i]
            give, to_z, to_v = _towards(y[k], u[k], z[k], v[k], pull, predicted[i], centre, trust)
            flex[i] += give
            free[i] -= (pull - to_z + to_v) * give


@compiled(
    "f8[::1](UniTuple(i8[::1], 3), f8[::1], f8[:,::1], f8[::1], f8, f8, f8[::1], f8[::1],"
    " f8[:,::1])"
)
def step(
    layout: _Layout,
    slope: Floats,
    state: Floats,
    price: Floats,
    centre: float,
    trust: float,
    predicted: Floats,
    change: Floats,
    move: Floats,
) -> Floats:
    """(6,): primal, dual, products of a Reach.  move: (3, segments) dy, dz, dv, written."""
    first, slope_first, kind = layout
    y, u, z, v = state
    primal = dual = 0.0
    now = by_primal = by_dual = by_both = 0.0
    for i in range(len(kind)):
        shift = slope_first[kind[i]] - first[i]
        for k in range(first[i], first[i + 1]):
            pull = slope[k + shift] + price[i]
            give, to_z, to_v = _towards(y[k], u[k], z[k], v[k], pull, predicted[i], centre, trust)
            dy = -(pull + change[i] - to_z + to_v) * give
            lost_y, lost_u = -dy / y[k], dy / u[k]
            dz = to_z - z[k] + z[k] * lost_y
            dv = to_v - v[k] + v[k] * lost_u
            primal = max(primal, lost_y, lost_u)
            dual = max(dual, -dz / z[k], -dv / v[k])
            now += y[k] * z[k] + u[k] * v[k]
            by_primal += dy * (z[k] - v[k])
            by_dual += y[k] * dz + u[k] * dv
            by_both += dy * (dz - dv)
            move[0, k], move[1, k], move[2, k] = dy, dz, dv
    return np.array([primal, dual, now, by_primal, by_dual, by_both])


@compiled("void(f8[:,::1], f8[:,::1], f8, f8)")
def advance(state: Floats, move: Floats, primal: float, dual: float) -> None:
    y, u, z, v = state
    dy, dz, dv = move
    for k in range(len(y)):
        y[k] += primal * dy[k]
        u[k] -= primal * dy[k]
        z[k] += dual * dz[k]
        v[k] += dual * dv[k]


@compiled("void(UniTuple(i8[::1], 3), f8[::1], f8[::1], f8[::1], f8, f8, f8[:,::1])")
def start(
    layout: _Layout,
    slope: Floats,
    width: Floats,
    price: Floats,
    share: float,
    centre: float,
    state: Floats,
) -> None:
    first, slope_first, kind = layout
    y, u, z, v = state
    for i in range(len(kind)):
        shift = slope_first[kind[i]] - first[i]
        for k in range(first[i], first[i + 1]):
            wide, pull = width[k + shift], slope[k + shift] + price[i]
            y[k], u[k] = share * wide, (1.0 - share) * wide
            # z − v = pull and z · v = level²: the larger by the sum, the other by the product
            level = centre / wide
            larger = 0.5 * (abs(pull) + np.sqrt(pull * pull + 4.0 * level * level))
            smaller = level * level / larger
            z[k], v[k] = (larger, smaller) if pull > 0 else (smaller, larger)


@compiled("void(UniTuple(i8[::1], 3), f8[:,::1], f8[::1])")
def add_up(layout: _Layout, state: Floats, durations: Floats) -> None:
    first = layout[0]
    for i in range(len(durations)):
        durations[i] = 0.0
        for k in range(first[i], first[i + 1]):
            durations[i] += state[0, k]


@compiled("f8(f8[:,::1])")
def products(state: Floats) -> float:
    y, u, z, v = state
    total = 0.0
    for k in range(len(y)):
        total += y[k] * z[k] + u[k] * v[k]
    return total
