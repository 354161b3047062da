"""What a trial would teach: by how much it would narrow what curves are not sure of.

Points of interest are kinds at clocks that a plan might use. Of their log times and log powers the
fits give a covariance M, so a measurement of point p with variance v (in the same logarithms) would
lower the variance of every point q by M_pq² / (M_pp + v): of p itself, of its neighbours on the
curve, and of all its like. Worth is the sum over points, each in units of the variance that is
good enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perseusd.core.learned.family import Array, Fitted
from perseusd.core.learned.knowledge import Knowledge
from perseusd.core.model import Kind

TIME_ERROR = 0.012
"""Relative standard error of a time that is good enough: 3 % are then 2.5 of them."""

POWER_ERROR = 0.018
"""The same of a power."""

LEAST_LIKELY = 0.2
"""Of all points: stragglers may give any computation time, and groups learn from every kind."""

POWER_DEVIATIONS = 1.5
"""A window's energy is the difference of two readings of the counter, each with its residual, and
what else is not known about the ticks around it."""


Ints = NDArray[np.intp]


class Points:
    """Kinds at clocks, and what is not known there. Indices: `index[kind, clock_mhz]`."""

    def __init__(
        self, knowledge: Knowledge, points: Sequence[tuple[Kind, int]], room_s: Mapping[Kind, float]
    ) -> None:
        """room_s: by kind, by how much any of its computations may take longer."""
        self.index: Mapping[tuple[Kind, int], int] = {p: i for i, p in enumerate(points)}
        top_mhz = knowledge.top_mhz
        model, powers = knowledge.time_model(), knowledge.power_model()
        self.x = np.array([top_mhz[kind.rank] / clock for kind, clock in points])
        self._noise = knowledge.noise()
        self.seconds = np.empty(len(points))
        self.watts = np.ones(len(points))
        self._joules_sd = np.ones(len(points))
        kinds = [kind for kind, _ in points]
        for kind, own in _places(kinds).items():
            self.seconds[own] = model.top_s[kind] * model.foreseen(kind, self.x[own])
            if powers.knows(kind):
                self.watts[own] = powers.watts(kind, self.x[own])
                self._joules_sd[own] = powers.sd_j.get(kind.rank, 1.0)
        self.time = _covariance(model.fitted, kinds, self.x)
        known = powers.fitted is not None and all(powers.knows(k) for k in set(kinds))
        self.power = _covariance(powers.fitted if known else None, kinds, self.x)
        top_s = np.array([model.top_s[kind] for kind in kinds])
        room = np.array([room_s[kind] for kind in kinds])
        extra_s = np.maximum(self.seconds - top_s, 1e-3 * top_s)
        #: how likely it is that a plan would use the point
        self.weight = np.clip(room / extra_s, LEAST_LIKELY, 1.0) ** 2
        #: seconds that it takes at most, as far as is known
        self.cautious_s = self.seconds * np.exp(np.sqrt(np.maximum(np.diag(self.time), 0.0)))

    def wanting(self) -> Array:
        """(points,) variances over those that are good enough, the larger of time's and power's.

        1 is good; where plans hardly get to, more is as good.
        """
        time, power = np.diag(self.time) / TIME_ERROR**2, np.diag(self.power) / POWER_ERROR**2
        wanting: Array = self.weight * np.maximum(time, power)
        return wanting

    def gains(self, point: Ints, most: int) -> Array:
        """(points, most + 1): worth of 0 to `most` more computations of each of these points."""
        count = np.arange(1.0, most + 1)
        found = np.zeros((len(point), most + 1))
        for matrix, noise, wanted in zip(
            (self.time, self.power),
            self._noises(point[:, None], count),
            (TIME_ERROR, POWER_ERROR),
            strict=True,
        ):
            column = matrix[:, point]
            reach = self.weight @ (column * column)
            found[:, 1:] += reach[:, None] / (np.diag(matrix)[point][:, None] + noise) / wanted**2
        return found

    def learn(self, point: int, count: float) -> None:
        """As if `count` more computations had been seen there."""
        at, n = np.array(point), np.array(count)
        time_noise, power_noise = self._noises(at, n)
        for matrix, noise in ((self.time, time_noise), (self.power, power_noise)):
            column = matrix[:, point].copy()
            matrix -= np.outer(column, column) / (column[point] + float(noise))

    def _noises(self, point: Ints, count: Array) -> tuple[Array, Array]:
        joules = self.watts[point] * self.seconds[point] * count
        power = (POWER_DEVIATIONS * self._joules_sd[point] / joules) ** 2
        return self._noise**2 / count, power


def _places(kinds: Sequence[Kind]) -> dict[Kind, Ints]:
    found: dict[Kind, list[int]] = {}
    for i, kind in enumerate(kinds):
        found.setdefault(kind, []).append(i)
    return {kind: np.array(own, dtype=np.intp) for kind, own in found.items()}


def _covariance(fitted: Fitted | None, kinds: Sequence[Kind], x: Array) -> Array:
    if fitted is None:
        return np.zeros((len(x), len(x)))
    places = np.array([fitted.layout.place[kind] for kind in kinds], dtype=np.intp)
    _, slope = fitted.layout.predict(fitted.theta, places, x)
    size = fitted.layout.size
    covariance: Array = slope @ fitted.covariance[:size, :size] @ slope.T
    return covariance


@dataclass(frozen=True)
class Prospect:
    """Of a group at one clock: net cost (energy less blocking power × time) over the top clock's,
    as believed and at its most favourable."""

    net: float
    hoped: float


def prospects(knowledge: Knowledge, kind: Kind, clocks: Sequence[int]) -> list[Prospect]:
    """For a kind that stands for its group, at each clock."""
    model, powers = knowledge.time_model(), knowledge.power_model()
    x = np.array([1.0, *(knowledge.gpus[kind.rank].top_mhz / np.array(clocks, dtype=float))])
    ratio = model.foreseen(kind, x)
    watts, blocking = powers.watts(kind, x), knowledge.blocking_power()[kind.rank]
    net = ratio * np.maximum(watts - blocking, 1e-3)
    group = model.group[kind]
    time_error = _ratio_error(model.fitted, group, x)
    power_error = _ratio_error(powers.fitted, group, x) * watts / np.maximum(watts - blocking, 1.0)
    hoped = net * np.exp(-np.hypot(time_error, power_error))
    pairs = zip((net / net[0]).tolist(), (hoped / net[0]).tolist(), strict=True)
    return [Prospect(*pair) for pair in pairs][1:]


def _ratio_error(fitted: Fitted | None, group: str, x: Array) -> Array:
    if fitted is None or group not in fitted.layout.groups:
        return np.zeros(len(x))
    return fitted.ratio_error(group, x)
