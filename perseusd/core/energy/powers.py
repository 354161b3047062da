"""Every GPU's energy equations together → power of every kind as a function of the clock.

One GPU's equations tell each kind's power at each clock only as well as that kind ran there, and
those of different columns are entangled. But all GPUs of a model share shapes (see `family`), so
the parameters of all are found at once: log power of a kind at x is level + bend · S_g(x), and of
a GPU that waits a level near that of its like. Gauss–Newton on the sums over ticks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from perseusd.core.energy.stretch import Column, Equations
from perseusd.core.learned.curves import group_name
from perseusd.core.learned.family import (
    KNOTS,
    LARGEST_STEP,
    SETTLED,
    Array,
    Belief,
    Fitted,
    Layout,
    carried,
    inverse,
    solved,
)
from perseusd.core.model import Kind

BEND = 0.10
"""Spread of bends within a group."""

_VOLTAGE = np.interp(KNOTS, [1, 1.3], [1, 0.75])
USUAL = Belief(np.log(0.35 + 0.65 / KNOTS * _VOLTAGE**2), 0.5, 0.02, BEND)
"""Of a GPU model that nothing is published about: static power and voltage as is common."""

ALIKE = 0.05
"""Spread of blocking power from one GPU of a model to another."""

LEAST_SD_J = 0.05
"""Of one tick's residual, below which none is believed: counters count in whole millijoules, and
power within one computation is not constant."""

SYSTEMATIC = 0.004
"""Relative: what a power may be off by however much was seen of it. Shapes are piecewise linear,
and clock changes are not timed to the microsecond."""

RIDGE = 1e-8
"""s²: in which a GPU is taken to draw its mean power in every column, so that none is unknown."""

MOST_STEPS = 25

LEVEL_SPREAD = 0.7
"""Of a kind's log power about its GPU's mean."""


@dataclass(frozen=True)
class PowerModel:
    """Fitted powers. blocking_w and its relative error are by rank."""

    fitted: Fitted | None = None
    group: Mapping[Kind, str] = field(default_factory=dict)
    blocking_w: Mapping[int, float] = field(default_factory=dict)
    blocking_error: Mapping[int, float] = field(default_factory=dict)
    sd_j: Mapping[int, float] = field(default_factory=dict)
    """By rank, of one tick's residual."""

    def knows(self, kind: Kind) -> bool:
        return kind in self.group

    def bend(self, kind: Kind) -> float:
        """How much of its group's shape it follows; 1 where nothing is known of it."""
        if self.fitted is None or kind not in self.group:
            return 1.0
        return min(max(self.fitted.bend(kind), 0.1), 3.0)

    def watts(self, kind: Kind, x: Array) -> Array:
        """Power at x, never more than at a higher clock."""
        assert self.fitted is not None
        level = self.fitted.theta[self.fitted.layout.place[kind]]
        shape = np.minimum.accumulate(self.fitted.shape(self.group[kind]))
        bend = max(self.fitted.bend(kind), 0.0)
        return np.asarray(np.exp(level + bend * np.interp(x, KNOTS, shape)))

    def error(self, kind: Kind, x: Array) -> Array:
        """Relative standard error of the power at x."""
        assert self.fitted is not None
        return self.fitted.error(kind, x)


def fit_powers(
    equations: Mapping[int, Equations],
    top_mhz: Mapping[int, int],
    gpu_model: Mapping[int, str],
    beliefs: Mapping[str, Belief],
    before: PowerModel | None = None,
    bends: Mapping[Kind, float] | None = None,
) -> PowerModel:
    """All by rank but beliefs, by group, and bends as remembered, by kind."""
    equations = {r: e for r, e in equations.items() if float(np.trace(e.gram)) > 0}
    kinds = {c.kind for e in equations.values() for c in e.columns if c is not None}
    if not kinds:
        return PowerModel()
    group = {k: group_name(k, gpu_model) for k in kinds}
    fit = _Fit(equations, top_mhz, gpu_model, group, beliefs)
    for kind, place in fit.layout.place.items():
        fit.middle[len(fit.layout.kinds) + place] = (bends or {}).get(kind, 1.0)
    return fit.solved(before)


class _Fit:
    """Parameters: the layout's, then log blocking power of every rank, then of every GPU model."""

    def __init__(
        self,
        equations: Mapping[int, Equations],
        top_mhz: Mapping[int, int],
        gpu_model: Mapping[int, str],
        group: Mapping[Kind, str],
        beliefs: Mapping[str, Belief],
    ) -> None:
        self.equations, self.group = equations, group
        self.layout = layout = Layout(group)
        self.ranks = sorted(equations)
        self.models = sorted({gpu_model[r] for r in self.ranks})
        self.model_of = [self.models.index(gpu_model[r]) for r in self.ranks]
        self.size = layout.size + len(self.ranks) + len(self.models)
        self.columns: list[tuple[list[int], list[int], np.ndarray, Array]] = []
        for rank in self.ranks:
            columns = equations[rank].columns
            running = [i for i, c in enumerate(columns) if c is not None]
            waiting = [i for i, c in enumerate(columns) if c is None]
            own: list[Column] = [c for c in columns if c is not None]
            kind = np.array([layout.place[c.kind] for c in own], dtype=np.intp)
            x = np.array([top_mhz[rank] / c.clock_mhz for c in own])
            self.columns.append((running, waiting, kind, x))
        variances = [_residual(equations[rank])[1] for rank in self.ranks]
        least = max(0.3 * float(np.median(variances)), LEAST_SD_J**2)
        self.seen = [_seen(equations[rank], least) for rank in self.ranks]
        self._start(beliefs)

    def _start(self, beliefs: Mapping[str, Belief]) -> None:
        layout = self.layout
        inner, precision = layout.start({g: beliefs.get(g, USUAL) for g in layout.groups})
        self.middle = np.concatenate([inner, np.zeros(self.size - layout.size)])
        self.prior = np.zeros((self.size, self.size))
        self.prior[: layout.size, : layout.size] = precision
        mean = {r: _mean_watts(e) for r, e in self.equations.items()}
        for kind, place in layout.place.items():
            self.middle[place] = np.log(mean[kind.rank])
            self.prior[place, place] += 1 / LEVEL_SPREAD**2
        for i, rank in enumerate(self.ranks):
            own, common = layout.size + i, layout.size + len(self.ranks) + self.model_of[i]
            self.middle[own] = np.log(0.4 * mean[rank])
            self.middle[common] = self.middle[own]
        for i in range(len(self.ranks)):
            own, common = layout.size + i, layout.size + len(self.ranks) + self.model_of[i]
            self.middle[own] = self.middle[common]
            pair = np.ix_([own, common], [own, common])
            self.prior[pair] += np.array([[1, -1], [-1, 1]]) / ALIKE**2
        for common in range(layout.size + len(self.ranks), self.size):
            self.prior[common, common] += 1 / LEVEL_SPREAD**2

    def solved(self, before: PowerModel | None) -> PowerModel:
        theta = self.middle.copy()
        known = before.fitted if before is not None else None
        theta[: self.layout.size] = carried(self.layout, theta[: self.layout.size], known)
        theta, matrix = self._descended(theta)
        size = self.layout.size
        fitted = Fitted(self.layout, theta[:size], matrix)
        blocking = np.exp(theta[size : size + len(self.ranks)])
        error = np.sqrt(np.diag(fitted.covariance)[size : size + len(self.ranks)])
        return PowerModel(
            fitted,
            self.group,
            dict(zip(self.ranks, blocking.tolist(), strict=True)),
            dict(zip(self.ranks, error.tolist(), strict=True)),
            {rank: seen.deviation_j for rank, seen in zip(self.ranks, self.seen, strict=True)},
        )

    def _descended(self, theta: Array) -> tuple[Array, Array]:
        """Levenberg–Marquardt: bends times shapes make a valley in which whole steps go astray."""
        cost, matrix, right = self._normal(theta)
        damping = 1e-6
        for _ in range(MOST_STEPS):
            damped = matrix + damping * np.diag(np.diag(matrix))
            step = np.clip(solved(damped, right), -LARGEST_STEP, LARGEST_STEP)
            tried = self._normal(theta + step)
            if tried[0] > cost:
                damping = max(damping * 10, 1e-4)
                continue
            theta, damping = theta + step, damping / 10
            gained, (cost, matrix, right) = cost - tried[0], tried
            if gained < SETTLED:
                break
        return theta, matrix

    def _normal(self, theta: Array) -> tuple[float, Array, Array]:
        """Half the squared deviations from all that is known, its curvature, and its descent."""
        off = theta - self.middle
        matrix, right = self.prior.copy(), -self.prior @ off
        cost = 0.5 * float(off @ self.prior @ off)
        for i, seen in enumerate(self.seen):
            watts, slope = self._watts(i, theta, len(seen.watts))
            left = seen.watts - watts
            pulled = seen.information @ left
            cost += 0.5 * float(left @ pulled)
            matrix += slope.T @ seen.information @ slope
            right += slope.T @ pulled
        return cost, matrix, right

    def _watts(self, i: int, theta: Array, columns: int) -> tuple[Array, Array]:
        running, waiting, kind, x = self.columns[i]
        size = self.layout.size
        watts, slope = np.zeros(columns), np.zeros((columns, self.size))
        log_watts, log_slope = self.layout.predict(theta[:size], kind, x)
        watts[running] = np.exp(np.clip(log_watts, -10, 10))
        slope[np.array(running, dtype=np.intp)[:, None], np.arange(size)] = (
            log_slope * watts[running][:, None]
        )
        if waiting:
            watts[waiting] = np.exp(np.clip(theta[size + i], -10, 10))
            slope[waiting[0], size + i] = watts[waiting[0]]
        return watts, slope


class _Seen(NamedTuple):
    """One GPU's powers by themselves: (columns,) watts, and the inverse of their covariance."""

    watts: Array
    information: Array
    deviation_j: float


def _residual(equations: Equations) -> tuple[Array, float]:
    """(columns,) watts by least squares, and J²: the variance of a tick's residual."""
    gram = equations.gram + RIDGE * np.eye(len(equations.columns))
    right = equations.moment + RIDGE * _mean_watts(equations)
    watts = solved(gram, right)
    return watts, equations.variance(watts)


def _seen(equations: Equations, least_variance: float) -> _Seen:
    watts, variance = _residual(equations)
    variance = max(variance, least_variance)
    covariance = variance * inverse(equations.gram + RIDGE * np.eye(len(watts)))
    covariance += np.diag((SYSTEMATIC * np.maximum(watts, _mean_watts(equations) / 4)) ** 2)
    return _Seen(watts, inverse(covariance), float(np.sqrt(variance)))


def _mean_watts(equations: Equations) -> float:
    total = np.ones(len(equations.moment))
    mean = float(equations.moment @ total) / max(float(total @ equations.gram @ total), 1e-12)
    return max(mean, 1.0)
