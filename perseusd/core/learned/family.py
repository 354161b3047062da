"""Curves that resemble each other: one shape a group, one level and one bend a kind.

Let x = f_top / f. The logarithm of a kind's time (or power) at x is modelled as

    y_k(x) = level_k + bend_k · S_g(x),   S_g(1) = 0,

with S_g piecewise linear between KNOTS and shared by all kinds with the same instruction on the
same GPU model (g); bend_k says how much of kind k's depends on the clock (1 for its group's
average, 1 ± BEND before anything was seen). Before anything was seen S_g is a prior's mean, scaled
by 1 ± its spread, plus a random walk of its slope, so that no formula is imposed: what was seen
decides, and where nothing was the uncertainty says so. Gauss–Newton finds the most probable
parameters; the inverse of its matrix is their covariance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from perseusd.core.model import Kind

KNOT_STEP = 1.04
KNOTS: NDArray[np.float64] = KNOT_STEP ** np.arange(19, dtype=np.float64)
"""Of x, from the top clock to half of it."""

ROUNDS = 6
"""Of Gauss–Newton; from the last solution one or two do."""

SETTLED = 5e-4
"""Change of all parameters below which no further round is made."""

LARGEST_STEP = 0.5
"""Of a logarithm or a bend in one round."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Shape:
    """A piecewise-linear function of x = f_top / f, known as far as its last x."""

    x: tuple[float, ...]
    value: tuple[float, ...]

    def at(self, x: float | Array) -> Array:
        return np.asarray(np.interp(x, self.x, self.value))

    @property
    def reach(self) -> float:
        return self.x[-1]


@dataclass(frozen=True)
class Belief:
    """Of one group's S before anything was seen.

    mean: (KNOTS,) with 0 first; spread: relative standard deviation of the whole; wander: standard
    deviation of what the slope changes by from one knot to the next, per knot; bend: standard
    deviation of bends about 1; error: (KNOTS,) what S may be off by besides, at all knots alike.
    """

    mean: Array
    spread: float
    wander: float
    bend: float
    error: Array | None = None

    @cached_property
    def precision(self) -> Array:
        """Shape (KNOTS − 1, KNOTS − 1), of S at all knots but the first."""
        n = len(KNOTS) - 1
        walk = np.maximum(np.arange(1, n + 1)[:, None] - np.arange(n)[None, :], 0.0) * self.wander
        mean = self.mean[1:]
        covariance = walk @ walk.T + self.spread**2 * np.outer(mean, mean) + 1e-8 * np.eye(n)
        if self.error is not None:
            covariance += np.outer(self.error[1:], self.error[1:])
        inverse: Array = np.linalg.inv(covariance)
        return inverse


class Layout:
    """Where each parameter stands: levels of kinds, then bends of kinds, then groups' knots."""

    def __init__(self, group: Mapping[Kind, str]) -> None:
        """group: of every kind."""
        self.kinds = tuple(sorted(group))
        self.groups = tuple(sorted(set(group.values())))
        self.place = {kind: i for i, kind in enumerate(self.kinds)}
        self._group_place = {name: i for i, name in enumerate(self.groups)}
        self.group_of = np.array([self._group_place[group[k]] for k in self.kinds], dtype=np.intp)
        self.inner = len(KNOTS) - 1
        self.size = 2 * len(self.kinds) + self.inner * len(self.groups)

    def knots(self, group: str) -> slice:
        first = 2 * len(self.kinds) + self.inner * self._group_place[group]
        return slice(first, first + self.inner)

    def start(self, beliefs: Mapping[str, Belief]) -> tuple[Array, Array]:
        """(parameters, precision matrix) before anything was seen; levels are 0 and free."""
        count = len(self.kinds)
        theta = np.concatenate([np.zeros(count), np.ones(count), np.zeros(self.size - 2 * count)])
        precision = np.zeros((self.size, self.size))
        for name in self.groups:
            theta[self.knots(name)] = beliefs[name].mean[1:]
            precision[self.knots(name), self.knots(name)] = beliefs[name].precision
        for i, place in enumerate(self.group_of):
            precision[count + i, count + i] = 1 / beliefs[self.groups[place]].bend ** 2
        return theta, precision

    def predict(self, theta: Array, kind: NDArray[np.intp], x: Array) -> tuple[Array, Array]:
        """(y, its derivatives by all parameters) of kinds (their places) at x: (n,), (n, size)."""
        count, rows = len(self.kinds), np.arange(len(x))
        weights = knot_weights(x)
        first = 2 * count + self.inner * self.group_of[kind]
        columns = first[:, None] + np.arange(self.inner)
        shape = np.einsum("ni,ni->n", weights, theta[columns])
        bend = theta[count + kind]
        slope = np.zeros((len(x), self.size))
        slope[rows, kind] = 1.0
        slope[rows, count + kind] = shape
        slope[rows[:, None], columns] = weights * bend[:, None]
        return theta[kind] + bend * shape, slope


def knot_weights(x: Array) -> Array:
    """(n, KNOTS − 1): S(x) = weights @ S at all knots but the first; flat beyond the last."""
    x = np.clip(x, KNOTS[0], KNOTS[-1])
    left = np.clip(np.searchsorted(KNOTS, x, side="right") - 1, 0, len(KNOTS) - 2)
    share = (x - KNOTS[left]) / (KNOTS[left + 1] - KNOTS[left])
    weights = np.zeros((len(x), len(KNOTS)))
    rows = np.arange(len(x))
    weights[rows, left] = 1 - share
    weights[rows, left + 1] = share
    inner: Array = weights[:, 1:]
    return inner


@dataclass(frozen=True)
class Fitted:
    """The most probable parameters, (size,), and the matrix of their normal equations.

    matrix: (size, size), or larger where more was fitted with them: that comes last.
    """

    layout: Layout
    theta: Array
    matrix: Array

    @cached_property
    def covariance(self) -> Array:
        """Of all that was fitted. Found when asked for: of most fits nobody does."""
        return inverse(self.matrix)

    def shape(self, group: str) -> Array:
        """(KNOTS,) S of that group."""
        return np.concatenate([[0.0], self.theta[self.layout.knots(group)]])

    def ratio_error(self, group: str, x: Array) -> Array:
        """Standard error of y at x less y at 1, of the kind of this group that is known best there.

        S alone is less certain: the data hardly tell a larger S from larger bends.
        """
        place = self.layout.groups.index(group)
        own = np.flatnonzero(self.layout.group_of == place)
        _, slope = self.layout.predict(self.theta, np.repeat(own, len(x)), np.tile(x, len(own)))
        slope[:, : len(self.layout.kinds)] = 0.0
        variance = self._variance(slope)
        least = variance.reshape(len(own), len(x)).min(axis=0)
        return np.asarray(np.sqrt(np.maximum(least, 0.0)))

    def bend(self, kind: Kind) -> float:
        return float(self.theta[len(self.layout.kinds) + self.layout.place[kind]])

    def error(self, kind: Kind, x: Array) -> Array:
        """Standard error of y at x: (n,)."""
        places = np.full(len(x), self.layout.place[kind])
        _, slope = self.layout.predict(self.theta, places, x)
        return np.asarray(np.sqrt(np.maximum(self._variance(slope), 0.0)))

    def _variance(self, slope: Array) -> Array:
        size = self.layout.size
        covariance = self.covariance[:size, :size]
        return np.asarray(np.einsum("ni,ni->n", slope @ covariance, slope))


def inverse(matrix: Array) -> Array:
    """Of a symmetric positive matrix, however badly scaled."""
    scaled, scale = _scaled(matrix)
    found: Array = np.asarray(np.linalg.inv(scaled)) * scale[:, None] * scale[None, :]
    return found


def solved(matrix: Array, right: Array) -> Array:
    """As inverse(matrix) @ right."""
    scaled, scale = _scaled(matrix)
    found: Array = np.asarray(np.linalg.solve(scaled, scale * right)) * scale
    return found


def _scaled(matrix: Array) -> tuple[Array, Array]:
    """With a diagonal of ones, and what its rows and columns were multiplied with for that."""
    scale = 1 / np.sqrt(np.maximum(np.diag(matrix), 1e-300))
    scaled = matrix * scale[:, None] * scale[None, :]
    scaled += 1e-10 * np.eye(len(scaled))
    return scaled, scale


def carried(layout: Layout, theta: Array, before: Fitted | None) -> Array:
    """Start from an earlier solution, as far as it has the same parameters."""
    if before is None:
        return theta
    theta = theta.copy()
    old, count, past = before.layout, len(layout.kinds), len(before.layout.kinds)
    for kind, i in layout.place.items():
        if (j := old.place.get(kind)) is not None:
            theta[i], theta[count + i] = before.theta[j], before.theta[past + j]
    for name in layout.groups:
        if name in old.groups:
            theta[layout.knots(name)] = before.theta[old.knots(name)]
    return theta
