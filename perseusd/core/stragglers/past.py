"""A replica's own past: its last iterations' levels, the reference, and how much they scatter.

The reference is the median of the first healthy iterations. Then it stands still, but for a very
slow correction while the replica is healthy: it must not follow a drift, for a drift is what a
thermal straggler is. Where single iterations scatter much it goes on averaging until its own error
is small.
"""

from __future__ import annotations

import numpy as np

from perseusd.core.stragglers.levels import MAD_TO_SIGMA, OUTLYING, Array, Levels

WINDOWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Iterations over which means are judged: what is large shows at once, what is small later."""

ROWS = WINDOWS[-1]

SEEDS = 20
"""Healthy iterations whose median is the first reference."""

TRUSTED = 4
"""Healthy iterations after which a replica can be judged by its own past."""

EXACT = 0.003
"""Error (log) of the reference at which averaging on ends."""

MOST_AVERAGED = 300

STILL = 1 / 2000
"""Share of an iteration's deviation that the settled reference takes over."""

LEAST_VARIANCE = 0.002**2

PRIOR_WEIGHT = 12.0
"""Iterations that the spread inside iterations counts for, beside the scatter between them."""

UNKNOWN_VARIANCE = 1.0
"""Of an iteration's level, where its inside tells nothing and fewer than FEWEST were compared."""

LOWEST = 4.0
"""Standard deviations below the reference at which a single iteration is cut off: what takes no
time at all did not run, and must not make the others look slow."""

FEWEST = 4

FEW = 8.0
"""Differences at which a variance from them alone is taken twice as large: it may be that much too
small by chance, and what is certain must be so nevertheless."""


class Past:
    """kinds: how many levels an iteration has; shared: whether they have its lengths in common."""

    def __init__(self, kinds: int, shared: bool = True) -> None:
        self._shared = shared
        self._rows = np.zeros((2 * ROWS, kinds))
        self._valid = np.zeros((2 * ROWS, kinds))
        self._next = 0
        self._seeds: list[Array] = []
        self.reference = np.zeros(kinds)
        self.sound: Array | None = None
        """What its peers say that the reference should be: where it was slow from the start, a
        level down there is a recovery."""
        self.healthy = 0
        """Healthy iterations seen."""
        self.usable = 0
        """Latest rows that may be compared with the reference."""
        self.averaged = SEEDS
        self.averaged_common = SEEDS
        self.variance = np.full(kinds, UNKNOWN_VARIANCE)
        """Of one iteration's level relative to the others', shape (kinds,)."""
        self.common_variance = UNKNOWN_VARIANCE
        """Of what all levels of an iteration share: its mean length."""
        self._noise = 0.0
        self._length = 0.0
        self._seen = 0

    def add(self, new: Levels, valid: Array) -> None:
        """valid: shape (kinds,), 1 where the level may be judged, else 0."""
        if self._next == 2 * ROWS:
            self._rows[:ROWS] = self._rows[ROWS:]
            self._valid[:ROWS] = self._valid[ROWS:]
            self._next = ROWS
        if not self._seen:
            self.reference = new.level.copy()
        usual = np.minimum(self.reference, self.sound) if self.sound is not None else self.reference
        lowest = usual - LOWEST * np.sqrt(self.variance + self.common_variance)
        self._rows[self._next] = np.maximum(new.level, lowest)
        self._valid[self._next] = valid
        self._next += 1
        self._seen += 1
        self.usable = min(self.usable + 1, ROWS)
        share = max(1.0 / self._seen, 1.0 / ROWS)
        self._noise += share * (new.noise - self._noise)
        self._length += share * (new.length - self._length)
        if self._seen <= SEEDS or self._seen % 4 == 0:
            self._measure_scatter()

    def latest(self) -> tuple[Array, Array]:
        """The usable levels and their validity, latest first, shape (rows, kinds)."""
        first = self._next - self.usable
        return self._rows[first : self._next][::-1], self._valid[first : self._next][::-1]

    def means(self, reference: Array) -> tuple[tuple[int, ...], Array, Array]:
        """Windows that end now, the mean excess over `reference` in each, and of how many rows.

        Both arrays have shape (windows, kinds); a mean of no rows is 0.
        """
        rows, valid = self.latest()
        windows = tuple(w for w in WINDOWS if w <= len(rows))
        ends = np.array(windows) - 1
        count = np.cumsum(valid, axis=0)[ends]
        total = np.cumsum((rows - reference) * valid, axis=0)[ends]
        return windows, total / np.maximum(count, 1.0), count

    def settle(self, relative: Array, common: float) -> None:
        """The latest iteration was healthy: the reference learns from it.

        relative: its levels less the reference and less `common`, shape (kinds,).
        """
        self.healthy += 1
        if len(self._seeds) < SEEDS:
            self._seeds.append(self._rows[self._next - 1].copy())
            self.reference = np.median(self._seeds, axis=0)
            return
        share = self._share(self.averaged, float(np.mean(self.variance)))
        share_common = self._share(self.averaged_common, self.common_variance)
        self.averaged += share > STILL
        self.averaged_common += share_common > STILL
        self.reference = self.reference + share * relative + share_common * common

    def shift(self, by: Array, rows: int) -> None:
        """The reference was wrong by `by` (kinds,); only the last `rows` rows count from now on."""
        self.reference = self.reference + by
        self._seeds = [seed + by for seed in self._seeds]
        self.usable = min(self.usable, rows)

    def certainty(self) -> tuple[int, int]:
        """Over how many iterations the reference averages: relative, and in common."""
        if len(self._seeds) < SEEDS:
            own = max(len(self._seeds), 1)
            return own, own
        return self.averaged, self.averaged_common

    def _share(self, averaged: int, variance: float) -> float:
        if averaged >= MOST_AVERAGED or variance < averaged * EXACT**2:
            return STILL
        return 1.0 / (averaged + 1)

    def _measure_scatter(self) -> None:
        """Variances from differences two iterations apart: blind to level and slow drift."""
        last = self._rows[max(self._next - ROWS, 0) : self._next]
        count, kinds = last.shape
        seen = max(count - 2, 0)
        common = last.mean(axis=1) if self._shared else np.zeros(count)
        between, between_common = np.zeros(kinds), 0.0
        if seen:
            between = _scatter(last - common[:, None])
            if self._shared:
                between *= kinds / max(kinds - 1, 1)
            between_common = float(_scatter(common[:, None])[0])
        pooled = (between + float(np.mean(between))) / 2
        shared_between = np.array(between_common)
        self.variance = np.maximum(_blend(self._noise, pooled, seen), LEAST_VARIANCE)
        inside = self._length + self._noise / kinds
        shared = float(_blend(inside, shared_between, seen))
        if inside > 0:  # one difference an iteration, and nothing to pool it with
            shared += FEW / (PRIOR_WEIGHT + seen) * between_common
        explained = float(np.mean(self.variance)) / kinds if kinds > 1 else 0.0
        self.common_variance = max(shared - explained, LEAST_VARIANCE)


def _scatter(rows: Array) -> Array:
    """Variance per column, robustly, from differences of rows two apart."""
    differences = np.abs(rows[2:] - rows[:-2])
    sigma: Array = MAD_TO_SIGMA * np.median(differences, axis=0)
    cut = np.minimum(differences, OUTLYING * sigma)
    variance: Array = np.mean(cut**2, axis=0) / 2
    return variance


def _blend(inside: float, between: Array, seen: int) -> Array:
    """Variance from that inside iterations and that between them, `seen` differences of them.

    Where the inside tells nothing, few differences make a wide guess.
    """
    if inside > 0:
        return (PRIOR_WEIGHT * inside + seen * between) / (PRIOR_WEIGHT + seen)
    if seen < FEWEST:
        return between + UNKNOWN_VARIANCE
    return between * (1 + FEW / seen)
