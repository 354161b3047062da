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
"""Excess that corrections for clocks may be wrong by, on one rank."""

MODEL_VARIANCE = 0.01**2
"""Of a rank's mean over any number of iterations: corrections for clocks are not exact."""

EXPECTED_VARIANCE = 0.002**2
"""Of the expected common level, beside that of the lengths."""


@dataclass(frozen=True)
class Excess:
    """Log of how many times as long, per window (rows) and column, with standard errors.

    raw: before what peers have in common was taken off.
    bias: the excess that may be our own model's error and proves nothing, per column, in each
        window or in all of them alike.
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
    borne: how much of the corrections' error the level takes from its ranks, all of one rank's
    being 1: the errors of n ranks that make it alone cancel out but for 1 / √n, and where lengths
    tell what to expect, it hardly follows the ranks at all.
    """

    level: Array
    free: Array
    variance: Array
    borne: Array


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
    none = Common(expected, expected, variance, np.zeros(len(expected)))
    if not trusted.any():
        return none
    excess, noise = ranks.mean[:, trusted], ranks.noise[:, trusted]
    order = np.argsort(excess, axis=1)
    u = np.take_along_axis(excess, order, axis=1)
    v = np.take_along_axis(noise, order, axis=1) + MODEL_VARIANCE
    prior = variance + EXPECTED_VARIANCE
    sums = [_running(term) for term in (1 / v, u / v, u * u / v, 1 / v**2)]
    found = []
    for first in range(min(u.shape[1], 2)):
        own = [total[:, first:] - total[:, first : first + 1] for total in sums]
        apart = OUTLIER * (u.shape[1] - np.arange(own[0].shape[1]))
        found.append(_free(own, expected, apart + (0.0 if slow else ALL_OUTLYING)))
        if not slow:
            found.append(_held(own, expected, prior, apart))
    parts = [np.concatenate(part, axis=1) for part in zip(*found, strict=True)]
    best = np.argmin(parts[0], axis=1)[:, None]
    level, free, weight, borne = (np.take_along_axis(p, best, axis=1)[:, 0] for p in parts[1:])
    scale = noise.mean(axis=1) / (noise.mean(axis=1) + MODEL_VARIANCE)
    own_variance = np.where(weight > 0, scale / np.maximum(weight, 1e-12), variance)
    return Common(level, free, own_variance, borne)


def _running(values: Array) -> Array:
    total = np.zeros((values.shape[0], values.shape[1] + 1))
    np.cumsum(values, axis=1, out=total[:, 1:])
    return total


def _free(own: Sequence[Array], expected: Array, price: Array) -> tuple[Array, ...]:
    """The common level is wherever the healthy ranks are; there must be one."""
    weight, first, second, squared = own
    some = np.maximum(weight, 1e-12)
    level = np.where(weight > 0, first / some, expected[:, None])
    cost = np.where(weight > 0, 0.5 * (second - first**2 / some) + price, np.inf)
    return cost, level, level, weight, _borne(squared, some)


def _held(own: Sequence[Array], expected: Array, prior: Array, price: Array) -> tuple[Array, ...]:
    """The common level is drawn to what is expected; where all are slow, it is the replica."""
    weight, first, second, squared = own
    strength = (1 / prior)[:, None]
    middle = expected[:, None]
    total = weight + strength
    level = (first + middle * strength) / total
    cost = 0.5 * (second + middle**2 * strength - total * level**2) + price
    cost = np.where(weight > 0, cost, np.inf)
    free = np.where(weight > 0, first / np.maximum(weight, 1e-12), middle)
    return cost, level, free, weight, _borne(squared, total)


def _borne(squared: Array, total: Array) -> Array:
    """√Σ wᵢ² of a mean with the ranks' weights wᵢ = 1 / (vᵢ total); squared: Σ 1 / vᵢ²."""
    borne: Array = np.sqrt(np.maximum(squared, 0.0)) / total
    return borne
