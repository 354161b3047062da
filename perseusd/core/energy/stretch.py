"""One stretch of a GPU's activities and the counter's ticks in it → equations for its powers.

See `attribution` for what the equations say, and `sensor` for what a tick is.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from perseusd.core.energy.quantiles import median, quantile
from perseusd.core.energy.sensor import Sensing, Tick, moments
from perseusd.core.model import Kind

FEWEST_TICKS = 8
"""Iterations shorter than this are joined, so that a tick tells more than where it fell."""

FEWEST_IN_RUN = 2
"""Increments, below which a free offset leaves nothing to learn."""

OUTLYING = 7.0
"""Typical residuals beyond which a tick's residual is the counter's doing and not the GPU's."""

MOST_OUTLIERS = 0.2
"""Share of an iteration's ticks; where more are outlying, it is the powers that have changed."""

LEAST_RESIDUAL = 0.03
"""Of what a tick adds: residuals smaller than this times OUTLYING never count as the counter's."""

MOST_QUANTILE = 0.9
"""Of the powers that ticks show: what a GPU is taken to draw at most, give or take a half."""

TIMING_S = 0.05
"""By which two ticks may lie further apart than they seem to."""

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


class Column(NamedTuple):
    """One unknown power."""

    kind: Kind
    clock_mhz: int


@dataclass(frozen=True)
class Activities:
    """What a GPU did from one moment on without a gap.

    edges_ns: (n + 1,) where one ended and the next began; none has no length.
    columns: what they were, each once, waiting (None) first; of: (n,) which of these each was.
    """

    edges_ns: Ints
    columns: tuple[Column | None, ...]
    of: Ints

    def __len__(self) -> int:
        return len(self.of)

    @property
    def start_ns(self) -> int:
        return int(self.edges_ns[0])

    @property
    def end_ns(self) -> int:
        return int(self.edges_ns[-1])

    def then(self, later: Activities) -> Activities:
        """Both; the later ones begin where these end."""
        columns = self.columns
        if later.columns == columns:
            of = [self.of, later.of]
        else:
            columns = tuple(sorted({*columns, *later.columns}, key=waiting_first))
            place = {column: i for i, column in enumerate(columns)}
            of = [np.array([place[c] for c in a.columns])[a.of] for a in (self, later)]
        edges_ns = np.concatenate([self.edges_ns, later.edges_ns[1:]])
        return Activities(edges_ns, columns, np.concatenate(of))

    def tail(self, first: int) -> Activities:
        """From that one on."""
        found, of = np.unique(self.of[first:], return_inverse=True)
        columns = tuple(self.columns[i] for i in found.tolist())
        return Activities(self.edges_ns[first:], columns, of)


class Equations(NamedTuple):
    """Sums over ticks of one GPU: gram @ watts = moment is the least-squares estimate.

    columns: in any order; gram: (columns, columns) s²; moment: (columns,) J s; seconds: (columns,)
    spent; squares: J², of what is explained; ticks: how many, less those that free offsets took.
    """

    columns: tuple[Column | None, ...]
    gram: Array
    moment: Array
    seconds: Array
    squares: float
    ticks: float

    def variance(self, watts: Array) -> float:
        """J²: the mean squared residual of a tick under these powers."""
        left = self.squares - 2 * watts @ self.moment + watts @ self.gram @ watts
        return max(float(left), 0.0) / max(self.ticks - len(watts), 1.0)


class Stretch(NamedTuple):
    """Gapless activities: at edges_s (n+1,), spent_s (n+1, columns) so far; and the ticks within.

    seconds: (columns,) of what had not been counted in an earlier stretch.
    before_s, by_s, added_j: (ticks,) from which tick to which, and by how much the counter rose.
    run: (ticks,) equal for those that follow each other gaplessly.
    """

    columns: tuple[Column | None, ...]
    edges_s: Array
    spent_s: Array
    seconds: Array
    before_s: Array
    by_s: Array
    added_j: Array
    run: NDArray[np.intp]

    def spent(self, at_s: Array) -> Array:
        """(…, columns) seconds spent so far at any moments (…), by interpolation."""
        index = np.clip(self.edges_s.searchsorted(at_s) - 1, 0, len(self.edges_s) - 2)
        left, right = self.edges_s[index], self.edges_s[index + 1]
        share = np.clip((at_s - left) / np.maximum(right - left, 1e-12), 0.0, 1.0)[..., None]
        between: Array = self.spent_s[index] * (1 - share) + self.spent_s[index + 1] * share
        return between

    def increments(self, sensings: Sequence[Sensing]) -> tuple[Array, Array, NDArray[np.intp]]:
        """What each tick covers, (sensings, ticks, columns) s, what it adds and its run, (ticks,).

        Only ticks of which every sensing's cover lies within the stretch.
        """
        keep = self.before_s - max(s.late_s for s in sensings) >= self.edges_s[0]
        before, by = self.before_s[keep], self.by_s[keep]
        ends = np.concatenate([by - s.late_s for s in sensings])
        begins = np.concatenate([by - s.late_s - s.share * (by - before) for s in sensings])
        shares = np.repeat([s.share for s in sensings], len(by))
        by_ends, by_begins = self.spent(np.stack([ends, begins]))
        covered = (by_ends - by_begins) / shares[:, None]
        design = covered.reshape(len(sensings), len(by), len(self.columns))
        return design, self.added_j[keep], self.run[keep]

    def equations(self, sensing: Sensing, watts: Array | None) -> Equations | None:
        """watts: (columns,) what is believed so far, to tell outliers; None: nothing is."""
        design, added, run = self.increments([sensing])
        rows = design[0]
        fit = _plausible(rows, added, watts)
        if sensing.share < 1:
            rows, value, offsets = rows[fit], added[fit], 0
        else:
            # What does not fit ends a run: what follows is another one.
            run = run + (run.max(initial=0) + 1) * np.cumsum(~fit)
            rows, value, offsets = _cumulated(rows[fit], added[fit], run[fit])
        if len(value) < 2:
            return None
        gram, moment = rows.T @ rows, rows.T @ value
        squares, ticks = float(value @ value), len(value) - offsets
        return Equations(self.columns, gram, moment, self.seconds, squares, ticks)


def _possible(seconds: Array, added: Array) -> NDArray[np.bool_]:
    """Whether a GPU that draws what this one draws at most may have used as much in one tick."""
    most_w = quantile(added / np.maximum(seconds, 1e-9), MOST_QUANTILE)
    possible: NDArray[np.bool_] = added <= 1.5 * most_w * (seconds + TIMING_S)
    return possible


def _plausible(rows: Array, added: Array, watts: Array | None) -> NDArray[np.bool_]:
    """watts: (columns,) believed so far, NaN where nothing is: ticks there stand no test."""
    fit = np.ones(len(added), dtype=bool)
    if watts is None:
        return fit
    known = ~(rows[:, np.isnan(watts)] > 0).any(axis=1)
    if np.count_nonzero(known) < FEWEST_TICKS:
        return fit
    expected = rows[known] @ np.nan_to_num(watts)
    left = added[known] - expected
    residual = np.abs(left - median(left))
    usual = max(median(residual), LEAST_RESIDUAL * median(expected))
    outlying = residual > OUTLYING * usual
    if np.count_nonzero(outlying) <= MOST_OUTLIERS * len(outlying):
        fit[np.flatnonzero(known)[outlying]] = False
    return fit


def _cumulated(rows: Array, added: Array, run: NDArray[np.intp]) -> tuple[Array, Array, int]:
    """Sums over runs of increments, each run about its own mean: a free offset a run."""
    designs, values = [rows[:0]], [added[:0]]
    cuts = (np.flatnonzero(np.diff(run)) + 1).tolist()
    for begin, end in itertools.pairwise([0, *cuts, len(added)]):
        if end - begin < FEWEST_IN_RUN:
            continue
        design, value = np.zeros((end - begin + 1, rows.shape[1])), np.zeros(end - begin + 1)
        np.cumsum(rows[begin:end], axis=0, out=design[1:])
        np.cumsum(added[begin:end], out=value[1:])
        designs.append(design - design.sum(axis=0) / len(design))
        values.append(value - value.sum() / len(value))
    return np.concatenate(designs), np.concatenate(values), len(designs) - 1


def stretch_of(activities: Activities, before: int, ticks: Sequence[Tick]) -> Stretch | None:
    """before: how many of the activities were counted already."""
    origin_ns = int(activities.edges_ns[before])
    chains = [list(own) for _, own in itertools.groupby(ticks, key=lambda t: t.chain)]
    chains = [own for own in chains if len(own) >= 2]
    if not chains:
        return None
    edges = np.asarray((activities.edges_ns - origin_ns) * 1e-9, dtype=np.float64)
    spent = np.zeros((len(edges), len(activities.columns)))
    spent[np.arange(1, len(edges)), activities.of] = np.diff(edges)
    seconds = spent[before + 1 :].sum(axis=0)
    from_s, by_s, added, run = _increments(chains, origin_ns)
    return Stretch(
        activities.columns, edges, np.cumsum(spent, axis=0), seconds, from_s, by_s, added, run
    )


def _increments(
    chains: Sequence[Sequence[Tick]], origin_ns: int
) -> tuple[Array, Array, Array, NDArray[np.intp]]:
    """From, to, joules, run; without ticks that no GPU can have caused."""
    at = [moments(own, origin_ns) for own in chains]
    before, by = np.concatenate([a[:-1] for a in at]), np.concatenate([a[1:] for a in at])
    added = np.concatenate([np.diff([t.joules for t in own]) for own in chains])
    run = np.repeat(np.arange(len(chains)), [len(own) - 1 for own in chains])
    possible = _possible(by - before, added)
    run = run + len(chains) * np.cumsum(~possible)
    return before[possible], by[possible], added[possible], run[possible]


def waiting_first(column: Column | None) -> tuple[object, ...]:
    return column or ()
