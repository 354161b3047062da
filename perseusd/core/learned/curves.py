"""Durations seen at a few clocks → time as a function of the clock, for every kind.

Let x = f_top / f. The time of a kind relative to its time at the top clock, ρ_k(x), follows the
shape of its group: all kinds with the same instruction on the same GPU model (see `family`). A kind
at a power cap or bound by memory has ρ near 1: no formula such as a + b/f is imposed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from perseusd.core.learned.durations import Durations
from perseusd.core.learned.family import (
    KNOTS,
    ROUNDS,
    SETTLED,
    Belief,
    Fitted,
    Layout,
    Shape,
    carried,
    solved,
)
from perseusd.core.model import Kind

__all__ = ["Shape", "TimeModel", "fit_times"]

SYSTEMATIC = 0.002
"""What a mean of many durations may still be off by: stamps and clock writes are not exact."""

BEND = 0.15
"""Spread of bends within a group: stages of one model are alike, not equal."""

USUAL = Belief(np.log(1 + 0.75 * (KNOTS - 1)), 0.4, 0.01, BEND)
"""Of a GPU model that nothing is published about: time ≈ a + b/f, b from a third of it to all."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class TimeModel:
    """Fitted ρ for every kind that was seen at its top clock.

    shapes: by group, log ρ over x as far as it was explored; bend: by kind, its factor.
    """

    shapes: Mapping[str, Shape]
    group: Mapping[Kind, str]
    bend: Mapping[Kind, float]
    top_s: Mapping[Kind, float]
    fitted: Fitted | None = None

    def ratio(self, kind: Kind, x: float | Array) -> Array:
        """ρ at x; beyond what was explored it stays as it is there."""
        return np.asarray(np.exp(self.bend[kind] * self.shapes[self.group[kind]].at(x)))

    def foreseen(self, kind: Kind, x: Array) -> Array:
        """ρ at any x, as believed before it is explored."""
        if self.fitted is None:
            raise KeyError(kind)
        shape = np.maximum.accumulate(self.fitted.shape(self.group[kind]))
        return np.asarray(np.exp(self.bend[kind] * np.interp(x, KNOTS, shape)))

    def error(self, kind: Kind, x: Array) -> Array:
        """Relative standard error of the time at x."""
        if self.fitted is None:
            raise KeyError(kind)
        return self.fitted.error(kind, x)

    def at_one_clock(
        self,
        kind: Kind,
        pieces: Sequence[tuple[float, int]],
        top_mhz: int,
        impure: float,
    ) -> tuple[int, float] | None:
        """(clock, seconds it would have taken there throughout) of a computation cut in pieces.

        pieces: (seconds, clock). None where less than 1 − `impure` of it ran at one clock.
        """
        total = sum(seconds for seconds, _ in pieces)
        by_clock: dict[int, float] = {}
        for seconds, clock in pieces:
            by_clock[clock] = by_clock.get(clock, 0.0) + seconds
        main = max(by_clock, key=lambda c: by_clock[c])
        if by_clock[main] < (1 - impure) * total:
            return None
        if len(by_clock) == 1:
            return main, total
        if kind not in self.top_s:
            return None
        at_main = float(self.ratio(kind, top_mhz / main))
        return main, sum(
            seconds * at_main / float(self.ratio(kind, top_mhz / clock))
            for clock, seconds in by_clock.items()
        )

    def reach(self, kind: Kind) -> float:
        """The largest f_top / f that was explored for this kind's group."""
        return self.shapes[self.group[kind]].reach


@dataclass(frozen=True)
class Remembered:
    """Of an earlier run: logarithm of a kind's time at the top clock, and how far its group was
    explored (x, by group)."""

    top_log_s: Mapping[Kind, float] = field(default_factory=dict)
    bend: Mapping[Kind, float] = field(default_factory=dict)
    reach: Mapping[str, float] = field(default_factory=dict)


def group_name(kind: Kind, gpu_model: Mapping[int, str]) -> str:
    return f"{gpu_model[kind.rank]}:{kind.instruction}"


def fit_times(
    durations: Durations,
    top_mhz: Mapping[int, int],
    gpu_model: Mapping[int, str],
    beliefs: Mapping[str, Belief] | None = None,
    remembered: Remembered | None = None,
    before: Fitted | None = None,
) -> TimeModel:
    """Fit shapes and bends. `top_mhz` and `gpu_model` are by rank; beliefs by group.

    Kinds never seen at their top clock, now or as remembered, are left out.
    """
    remembered = remembered or Remembered()
    known = [k for k in durations.seen if durations.count(k, top_mhz[k.rank])]
    group = {k: group_name(k, gpu_model) for k in dict.fromkeys([*known, *remembered.top_log_s])}
    if not group:
        return TimeModel({}, {}, {}, {})
    layout = Layout(group)
    beliefs = {name: (beliefs or {}).get(name, USUAL) for name in layout.groups}
    fitted = _fit(durations, top_mhz, layout, beliefs, remembered, before)
    top_s = {k: math.exp(fitted.theta[i]) for k, i in layout.place.items()}
    for kind in known:  # exactly as seen: what is at the top clock needs no curve
        top_s[kind] = math.exp(durations.mean(kind, top_mhz[kind.rank])[0])
    reach = dict(remembered.reach)
    for kind in known:
        lowest = min(clock for clock, samples in durations.seen[kind].items() if samples)
        reach[group[kind]] = max(reach.get(group[kind], 1.0), top_mhz[kind.rank] / lowest)
    shapes = {
        name: explored(np.maximum.accumulate(fitted.shape(name)), reach.get(name, 1.0))
        for name in layout.groups
    }
    bend = {k: min(max(fitted.bend(k), 0.1), 3.0) for k in layout.kinds}
    return TimeModel(shapes, group, bend, top_s, fitted)


def explored(values: Array, reach: float) -> Shape:
    """S on KNOTS, cut where exploration ended; a point beyond the last knot keeps its value."""
    inner = reach > KNOTS
    inner[0] = reach > 1
    x = np.append(KNOTS[inner], reach)
    return Shape(tuple(x.tolist()), tuple(np.interp(x, KNOTS, values).tolist()))


def _fit(
    durations: Durations,
    top_mhz: Mapping[int, int],
    layout: Layout,
    beliefs: Mapping[str, Belief],
    remembered: Remembered,
    before: Fitted | None,
) -> Fitted:
    rows = [
        (place, top_mhz[kind.rank] / clock, *durations.mean(kind, clock))
        for kind, place in layout.place.items()
        for clock, samples in durations.seen.get(kind, {}).items()
        if samples
    ]
    noise = durations.relative_noise(top_mhz)
    kind = np.array([row[0] for row in rows], dtype=np.intp)
    x, y, count = (np.array([row[i] for row in rows], dtype=float) for i in (1, 2, 3))
    weight = 1 / (noise**2 / np.maximum(count, 1) + SYSTEMATIC**2)
    middle, prior = layout.start(beliefs)
    for k, place in layout.place.items():
        middle[place] = remembered.top_log_s.get(k, 0.0)
        middle[len(layout.kinds) + place] = remembered.bend.get(k, 1.0)
        prior[place, place] += 1.0  # a factor e either way
    theta = middle.copy()
    for place in range(len(layout.kinds)):
        own = (kind == place) & (x <= 1 + 1e-9)
        if own.any():
            theta[place] = middle[place] = y[own][0]
    theta = carried(layout, theta, before)
    matrix = prior
    for _ in range(ROUNDS):
        predicted, slope = layout.predict(theta, kind, x)
        matrix = prior + slope.T @ (slope * weight[:, None])
        right = slope.T @ (weight * (y - predicted)) - prior @ (theta - middle)
        step = np.clip(solved(matrix, right), -0.5, 0.5)
        theta = theta + step
        if np.max(np.abs(step), initial=0.0) < SETTLED:
            break
    return Fitted(layout, theta, matrix)
