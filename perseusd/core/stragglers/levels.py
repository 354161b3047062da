"""One iteration's computations, reduced to one level per kind.

Model: log duration = level of its kind + effect of its microbatch + noise. The microbatch's effect
(its sequence length) is alike on all stages of the replica, so the median over kinds finds it
whoever is slow; a robust mean over microbatches then gives the kind's level, in which a single
computation's hiccup does not show. The iteration's mean length stays in all levels alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from perseusd.core.model import Computation, Kind

Array = NDArray[np.float64]

SHORTEST_S = 1e-9
"""What a span of no length counts as."""

LONGEST_S = 1e6

OUTLYING = 3.0
"""Robust standard deviations beyond which one computation's deviation is cut off."""

MAD_TO_SIGMA = 1.4826


@dataclass(frozen=True)
class Layout:
    """Where each computation of an iteration stands in the matrix kinds × microbatches."""

    kinds: tuple[Kind, ...]
    ranks: tuple[int, ...]
    rank_of: NDArray[np.intp]
    """Per kind, the position of its rank in `ranks`."""
    row: NDArray[np.intp]
    column: NDArray[np.intp]
    microbatches: int
    full: bool
    columns: tuple[tuple[int, ...], ...]
    """Per rank, where excesses tell of it (see replica.py): itself, then its kinds if several."""
    crossings: Mapping[tuple[int, str], int]
    """(rank, instruction) → how many such computations an iteration has."""

    def matrix(self, seconds: Sequence[float]) -> Array:
        """log seconds, shape (kinds, microbatches); NaN where there was no such computation."""
        shape = (len(self.kinds), self.microbatches)
        filled = np.empty(shape) if self.full else np.full(shape, np.nan)
        filled[self.row, self.column] = np.log(
            np.clip(np.nan_to_num(seconds), SHORTEST_S, LONGEST_S)
        )
        return filled

    def busiest_s(self, seconds: Sequence[float]) -> float:
        """How long the busiest rank computes."""
        busy = np.bincount(self.rank_of[self.row], weights=seconds)
        return float(busy.max())


def layout_of(computations: Sequence[Computation]) -> Layout:
    kinds = tuple(sorted({c.kind for c in computations}))
    ranks = tuple(sorted({kind.rank for kind in kinds}))
    microbatches = sorted({c.microbatch for c in computations})
    place = {kind: i for i, kind in enumerate(kinds)}
    where = {microbatch: i for i, microbatch in enumerate(microbatches)}
    own = [[i for i, kind in enumerate(kinds) if kind.rank == rank] for rank in ranks]
    return Layout(
        kinds,
        ranks,
        np.array([ranks.index(kind.rank) for kind in kinds]),
        np.array([place[c.kind] for c in computations]),
        np.array([where[c.microbatch] for c in computations]),
        len(microbatches),
        len(set(computations)) == len(kinds) * len(microbatches),
        tuple(
            (place, *(len(ranks) + 1 + kind for kind in mine if len(mine) > 1))
            for place, mine in enumerate(own)
        ),
        Counter((c.rank, c.instruction) for c in computations),
    )


@dataclass(frozen=True)
class Levels:
    """One iteration of one replica.

    level: log seconds, shape (kinds,).
    noise: variance of a level that the scatter of single computations explains; 0 if unknown.
    length: variance that the scatter of the microbatches' lengths gives all levels together.
    effect, rest: what the microbatches add, and what is left, shapes (microbatches,) and
        (kinds, microbatches).
    """

    level: Array
    noise: float = 0.0
    length: float = 0.0
    effect: Array = field(default_factory=lambda: np.zeros(0))
    rest: Array = field(default_factory=lambda: np.zeros((0, 0)))


def levels(layout: Layout, seconds: Sequence[float], before: Levels | None = None) -> Levels:
    """The levels of an iteration whose computations took `seconds`, in the layout's order.

    before: the iteration before. A microbatch that is always longer than the others, or always on
    one stage, scatters nothing from one iteration to the next.
    """
    y = layout.matrix(seconds)
    median, mean = (np.median, np.mean) if layout.full else (np.nanmedian, np.nanmean)
    kinds, microbatches = y.shape
    if microbatches == 1:
        return Levels(y[:, 0])
    middle = median(y, axis=1)
    rest = y - middle[:, None]
    effect = median(rest, axis=0)
    rest -= effect
    spread = MAD_TO_SIGMA * median(np.abs(rest), axis=1)
    bound = OUTLYING * np.maximum(spread, float(np.mean(spread)))[:, None]
    rest = np.clip(rest, -bound, bound)
    level = middle + mean(rest, axis=1) + float(np.mean(effect))
    freedom = (1 - 1 / kinds) * (1 - 1 / microbatches) or 1.0
    if before is not None and before.rest.shape == rest.shape:
        noise = float(mean((rest - before.rest) ** 2)) / 2 / freedom
        length = float(np.var(effect - before.effect)) / 2
    else:
        noise, length = float(mean(rest**2)) / freedom, float(np.var(effect))
    length = max(length * microbatches / (microbatches - 1) - noise / kinds, 0.0)
    return Levels(level, noise / microbatches, length / microbatches, effect, rest)
