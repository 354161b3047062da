"""Which rank computes slowly: what of an iteration's levels is one rank's, and what all have.

Sequence lengths and a slow replica move all ranks of a replica alike; a slow rank moves alone, and
upwards. So, for each window of iterations, the ranks are split into those that move together and
those that do not, by least cost: squared distance from the common level for the former, a fixed
price for each of the latter; the common level itself stays near where lengths keep it, or pays a
price too. (A Gaussian model with sparse outliers, solved exactly: ranks sorted by excess, the
healthy ones are neighbours in it.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perseusd.core.stragglers.levels import Array, Layout

OUTLIER = 8.0
"""Price of a rank that is not where the others are: four sigma."""

ALL_OUTLYING = 20.0
"""Price of a replica that is not where lengths explain it: higher, for several ranks whose
corrections err alike must not move the level that a healthy one is compared with."""

BIAS = 0.03
"""Excess that corrections for clocks may be wrong by."""

MODEL_VARIANCE = 0.01**2
"""Of a rank's mean over any number of iterations: corrections for clocks are not exact."""

EXPECTED_VARIANCE = 0.002**2
"""Of the expected common level, beside that of the lengths."""


@dataclass(frozen=True)
class Excess:
    """Log of how many times as long, per window (rows) and column, with standard errors.

    raw: before what peers have in common was taken off.
    bias: per column, the excess that may be our own model's error and proves nothing.
    """

    windows: tuple[int, ...]
    mean: Array
    error: Array
    raw: Array
    bias: Array


@dataclass(frozen=True)
class Common:
    """What the ranks of a replica have in common. All arrays have shape (windows,).

    level: as far as lengths explain it; free: the healthy ranks' mean (the expected level where
    none is healthy); variance: of either, by the ranks' own noise.
    """

    level: Array
    free: Array
    variance: Array


@dataclass(frozen=True)
class Ranks:
    """The ranks' mean excesses over their references, shape (windows, ranks).

    noise: variance of those means by the ranks' own noise.
    trusted: per rank, whether it may tell what all have in common.
    """

    mean: Array
    noise: Array
    trusted: NDArray[np.bool_]


def shares(layout: Layout, reference: Array) -> Array:
    """Each kind's share of its rank's time, shape (kinds, ranks)."""
    weight = np.zeros((len(layout.kinds), len(layout.ranks)))
    weight[np.arange(len(layout.kinds)), layout.rank_of] = np.exp(reference - reference.max())
    counted = np.bincount(layout.row, minlength=len(layout.kinds))
    weight *= counted[:, None]
    share: Array = weight / weight.sum(axis=0)
    return share


def common_level(ranks: Ranks, expected: Array, variance: Array, slow: bool) -> Common:
    """Splits the ranks into those that move together and the others.

    expected, variance: shape (windows,): where lengths (and peers) let the common level be.
    slow: the replica is known to be slow: the common level is free.
    """
    trusted = ranks.trusted
    none = Common(expected, expected, variance)
    if not trusted.any():
        return none
    excess, noise = ranks.mean[:, trusted], ranks.noise[:, trusted]
    order = np.argsort(excess, axis=1)
    u = np.take_along_axis(excess, order, axis=1)
    v = np.take_along_axis(noise, order, axis=1) + MODEL_VARIANCE
    prior = variance + EXPECTED_VARIANCE
    sums = [_running(term) for term in (1 / v, u / v, u * u / v)]
    found = []
    for first in range(min(u.shape[1], 2)):
        own = [total[:, first:] - total[:, first : first + 1] for total in sums]
        apart = OUTLIER * (u.shape[1] - np.arange(own[0].shape[1]))
        found.append(_free(own, expected, apart + (0.0 if slow else ALL_OUTLYING)))
        if not slow:
            found.append(_held(own, expected, prior, apart))
    cost, level, free, weight = (np.concatenate(part, axis=1) for part in zip(*found, strict=True))
    best = np.argmin(cost, axis=1)[:, None]
    scale = noise.mean(axis=1) / (noise.mean(axis=1) + MODEL_VARIANCE)
    chosen = np.take_along_axis(weight, best, axis=1)[:, 0]
    own_variance = np.where(chosen > 0, scale / np.maximum(chosen, 1e-12), variance)
    return Common(
        np.take_along_axis(level, best, axis=1)[:, 0],
        np.take_along_axis(free, best, axis=1)[:, 0],
        own_variance,
    )


def _running(values: Array) -> Array:
    total = np.zeros((values.shape[0], values.shape[1] + 1))
    np.cumsum(values, axis=1, out=total[:, 1:])
    return total


def _free(own: Sequence[Array], expected: Array, price: Array) -> tuple[Array, ...]:
    """The common level is wherever the healthy ranks are; there must be one."""
    weight, first, second = own
    some = np.maximum(weight, 1e-12)
    level = np.where(weight > 0, first / some, expected[:, None])
    cost = np.where(weight > 0, 0.5 * (second - first**2 / some) + price, np.inf)
    return cost, level, level, weight


def _held(own: Sequence[Array], expected: Array, prior: Array, price: Array) -> tuple[Array, ...]:
    """The common level is drawn to what is expected; where all are slow, it is the replica."""
    weight, first, second = own
    strength = (1 / prior)[:, None]
    middle = expected[:, None]
    total = weight + strength
    level = (first + middle * strength) / total
    cost = 0.5 * (second + middle**2 * strength - total * level**2) + price
    cost = np.where(weight > 0, cost, np.inf)
    free = np.where(weight > 0, first / np.maximum(weight, 1e-12), middle)
    return cost, level, free, weight
