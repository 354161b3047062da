"""One stretch of a GPU's activities and the counter's ticks in it → equations for its powers.

See `attribution` for what the equations say, and `sensor` for what a tick is.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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


class Activity(NamedTuple):
    """What the GPU did between two moments; kind None: it waited."""

    start_ns: int
    end_ns: int
    kind: Kind | None
    clock_mhz: int


class Column(NamedTuple):
    """One unknown power."""

    kind: Kind
    clock_mhz: int


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
        """(moments, columns) seconds spent so far at any moments, by interpolation."""
        index = np.clip(np.searchsorted(self.edges_s, at_s) - 1, 0, len(self.edges_s) - 2)
        left, right = self.edges_s[index], self.edges_s[index + 1]
        share = np.clip((at_s - left) / np.maximum(right - left, 1e-12), 0.0, 1.0)[:, None]
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
        covered = (self.spent(ends) - self.spent(begins)) / shares[:, None]
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
    most_w = float(np.quantile(added / np.maximum(seconds, 1e-9), MOST_QUANTILE))
    possible: NDArray[np.bool_] = added <= 1.5 * most_w * (seconds + TIMING_S)
    return possible


def _plausible(rows: Array, added: Array, watts: Array | None) -> NDArray[np.bool_]:
    """watts: (columns,) believed so far, NaN where nothing is: ticks there stand no test."""
    fit = np.ones(len(added), dtype=bool)
    if watts is None:
        return fit
    known = ~np.any(rows[:, np.isnan(watts)] > 0, axis=1)
    if np.count_nonzero(known) < FEWEST_TICKS:
        return fit
    expected = rows[known] @ np.nan_to_num(watts)
    residual = np.abs(added[known] - expected - np.median(added[known] - expected))
    usual = max(float(np.median(residual)), LEAST_RESIDUAL * float(np.median(expected)))
    outlying = residual > OUTLYING * usual
    if np.count_nonzero(outlying) <= MOST_OUTLIERS * len(outlying):
        fit[np.flatnonzero(known)[outlying]] = False
    return fit


def _cumulated(rows: Array, added: Array, run: NDArray[np.intp]) -> tuple[Array, Array, int]:
    """Sums over runs of increments, each run about its own mean: a free offset a run."""
    designs, values = [rows[:0]], [added[:0]]
    cuts = np.flatnonzero(np.diff(run)) + 1
    for own in np.split(np.arange(len(added)), cuts):
        if len(own) < FEWEST_IN_RUN:
            continue
        design = np.vstack([np.zeros(rows.shape[1]), np.cumsum(rows[own], axis=0)])
        value = np.concatenate([[0.0], np.cumsum(added[own])])
        designs.append(design - design.mean(axis=0))
        values.append(value - value.mean())
    return np.vstack(designs), np.concatenate(values), len(designs) - 1


def stretch_of(
    activities: Sequence[Activity], before: int, ticks: Sequence[Tick]
) -> Stretch | None:
    """before: how many of the activities were counted already."""
    origin_ns = activities[before].start_ns
    chains = [list(own) for _, own in itertools.groupby(ticks, key=lambda t: t.chain)]
    chains = [own for own in chains if len(own) >= 2]
    if not chains:
        return None
    of = [_column(a) for a in activities]
    columns = sorted(set(of), key=waiting_first)
    index = {column: i for i, column in enumerate(columns)}
    edges = np.array([a.start_ns - origin_ns for a in activities], dtype=float)
    edges = np.append(edges, activities[-1].end_ns - origin_ns) * 1e-9
    spent = np.zeros((len(edges), len(columns)))
    spent[np.arange(1, len(edges)), [index[c] for c in of]] = np.diff(edges)
    seconds = spent[before + 1 :].sum(axis=0)
    from_s, by_s, added, run = _increments(chains, origin_ns)
    return Stretch(
        tuple(columns), edges, np.cumsum(spent, axis=0), seconds, from_s, by_s, added, run
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


def _column(activity: Activity) -> Column | None:
    return None if activity.kind is None else Column(activity.kind, activity.clock_mhz)


def waiting_first(column: Column | None) -> tuple[object, ...]:
    return column or ()
