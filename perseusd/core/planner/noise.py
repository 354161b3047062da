"""Seeded samples of how long computations take around their expected durations.

A computation's duration is its curve's time multiplied by an independent lognormal factor of mean 1
and relative standard deviation `noise`: positive always, and at a few per cent hardly different
from a normal one.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from perseusd.core.model import Pipeline, Problem

Floats = NDArray[np.float64]

# A plan fits the samples it was made on a little better than others, the more so the more of its
# clocks are free: with so many samples its mean iteration on fresh ones is later by a few
# hundredths of a per cent at 3 % noise, by less at less. A quantile rests on the few samples beyond
# it, and takes more of them.
SAMPLES, SAMPLES_OF_FREE_CLOCKS, SAMPLES_OF_QUANTILE = 64, 128, 256


def of_problem(problem: Problem) -> tuple[Floats, ...]:
    """The samples that a problem's plans are compared on; see `factors`."""
    count = SAMPLES_OF_FREE_CLOCKS if problem.max_writes is None else SAMPLES
    if problem.confidence is not None:
        count = SAMPLES_OF_QUANTILE
    return factors(problem.pipeline, problem.noise, problem.seed, count)


def factors(
    pipeline: Pipeline, noise: float, seed: int, count: int = SAMPLES
) -> tuple[Floats, ...]:
    """Per rank, (computations of that rank, K) factors in execution order; K is 1 without noise.

    count: K, which is even.  Samples come in antithetic pairs, and each computation's factors are
    scaled to a mean of exactly 1, so that noise adds nothing but the waiting it causes.
    """
    lengths = [len(order) for order in pipeline.orders]
    if noise == 0.0:
        return tuple(np.ones((length, 1)) for length in lengths)
    rng = np.random.default_rng(seed)
    sigma = math.sqrt(math.log1p(noise * noise))
    drawn = []
    for length in lengths:
        half = rng.standard_normal((length, count // 2))
        factor = np.exp(sigma * np.concatenate([half, -half], axis=1))
        drawn.append(factor / factor.mean(axis=1, keepdims=True))
    return tuple(drawn)


def iteration_time(makespans: Floats, confidence: float | None) -> Floats:
    """What is compared of (…, K) iteration times: their mean, or their `confidence` quantile."""
    if confidence is None:
        mean: Floats = makespans.mean(axis=-1)
        return mean
    quantile: Floats = np.quantile(makespans, confidence, axis=-1)
    return quantile
