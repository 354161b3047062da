"""Seeded samples of how long computations take around their expected durations.

A computation's duration is its curve's time multiplied by an independent lognormal factor of mean 1
and relative standard deviation `noise`: positive always, and at a few per cent hardly different
from a normal one.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from perseusd.core.model import Pipeline

Floats = NDArray[np.float64]

# The mean of an iteration at 1 % noise then has a standard error of 0.03 %, and as plan and
# baseline meet the same samples, what is compared has less.
SAMPLES = 32


def factors(pipeline: Pipeline, noise: float, seed: int) -> tuple[Floats, ...]:
    """Per rank, (computations of that rank, K) factors in execution order; K is 1 without noise.

    Samples come in antithetic pairs, and each computation's factors are scaled to a mean of
    exactly 1, so that noise adds nothing but the waiting it causes.
    """
    lengths = [len(order) for order in pipeline.orders]
    if noise == 0.0:
        return tuple(np.ones((length, 1)) for length in lengths)
    rng = np.random.default_rng(seed)
    sigma = math.sqrt(math.log1p(noise * noise))
    drawn = []
    for length in lengths:
        half = rng.standard_normal((length, SAMPLES // 2))
        factor = np.exp(sigma * np.concatenate([half, -half], axis=1))
        drawn.append(factor / factor.mean(axis=1, keepdims=True))
    return tuple(drawn)


def fewer(factor: Floats, count: int) -> Floats:
    """(n, count) of the (n, K) samples, in antithetic pairs where count is even."""
    half = factor.shape[1] // 2
    if count >= factor.shape[1]:
        return factor
    picked = [k for pair in zip(range(half), range(half, 2 * half), strict=True) for k in pair]
    return factor[:, picked[:count]]
