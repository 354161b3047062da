"""Durations seen at a few clocks → time as a function of the clock, for every kind.

Let x = f_top / f. The time of a kind relative to its time at the top clock is modelled as

    ρ_k(x) = 1 + γ_k · (ρ_g(x) − 1),

where ρ_g is one piecewise-linear, monotone shape shared by all kinds with the same instruction on
the same GPU model (g), and γ_k says how much of kind k's time depends on the clock at all (1 for
the group's average; prior 1 ± GAMMA_SD, so that a kind with few samples follows its group). A kind
at a power cap or bound by memory has ρ near 1: no formula such as a + b/f is imposed. Shape and γ
are fitted in turn by weighted least squares on relative durations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from perseusd.core.model import Kind

GAMMA_SD = 0.15
"""Prior spread of γ within a group: stages of one model are alike, not equal."""

KEPT_SAMPLES = 64
"""Per kind and clock, the newest; a job drifts, and memory is bounded."""

NOISE_FLOOR = 0.003
"""Relative noise of one duration is never believed to be below this."""

ROUNDS = 4
"""Alternations of shape and γ; the second already changes less than 0.1 %."""

SMOOTHING = 4.0
"""Weight of squared second differences of the shape, in units of one sample's information."""

Array = NDArray[np.float64]


@dataclass
class Durations:
    """What was seen: per kind and clock, the newest durations in seconds."""

    seen: dict[Kind, dict[int, list[float]]] = field(default_factory=dict)

    def add(self, kind: Kind, clock_mhz: int, seconds: float) -> None:
        samples = self.seen.setdefault(kind, {}).setdefault(clock_mhz, [])
        samples.append(seconds)
        if len(samples) > KEPT_SAMPLES:
            del samples[0]

    def count(self, kind: Kind, clock_mhz: int) -> int:
        return len(self.seen.get(kind, {}).get(clock_mhz, ()))

    def typical(self, kind: Kind, clock_mhz: int) -> float | None:
        samples = self.seen.get(kind, {}).get(clock_mhz)
        return trimmed_mean(samples) if samples else None

    def relative_noise(self, top_mhz: Mapping[int, int]) -> float:
        """Relative standard deviation of one computation's duration at the top clock.

        From the median absolute deviation, so that a straggling iteration does not count as noise.
        """
        deviations = []
        for kind, clocks in self.seen.items():
            samples = clocks.get(top_mhz[kind.rank], [])
            if len(samples) >= 4:
                middle = float(np.median(samples))
                deviations += [abs(s / middle - 1) for s in samples]
        return max(NOISE_FLOOR, 1.4826 * float(np.median(deviations))) if deviations else 0.01


def trimmed_mean(samples: Sequence[float]) -> float:
    """Mean without the smallest and largest tenth; the median of up to four."""
    ordered = sorted(samples)
    if len(ordered) < 5:
        return float(np.median(ordered))
    cut = len(ordered) // 10
    return float(np.mean(ordered[cut : len(ordered) - cut]))


@dataclass(frozen=True)
class Shape:
    """A monotone piecewise-linear function of x = f_top / f with its value 1 at x = 1."""

    x: tuple[float, ...]
    value: tuple[float, ...]

    def at(self, x: float | Array) -> Array:
        return np.asarray(np.interp(x, self.x, self.value))

    @property
    def reach(self) -> float:
        return self.x[-1]


@dataclass(frozen=True)
class TimeModel:
    """Fitted ρ for every kind that was seen at its top clock."""

    shapes: Mapping[str, Shape]
    group: Mapping[Kind, str]
    gamma: Mapping[Kind, float]
    top_s: Mapping[Kind, float]

    def ratio(self, kind: Kind, x: float | Array) -> Array:
        shape = self.shapes[self.group[kind]]
        return 1 + self.gamma[kind] * (shape.at(x) - 1)

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


def fit_times(
    durations: Durations, top_mhz: Mapping[int, int], gpu_model: Mapping[int, str]
) -> TimeModel:
    """Fit shapes and γ. `top_mhz` and `gpu_model` are by rank.

    Kinds never seen at their top clock are left out.
    """
    top_s: dict[Kind, float] = {}
    group: dict[Kind, str] = {}
    for kind in durations.seen:
        top = durations.typical(kind, top_mhz[kind.rank])
        if top:
            top_s[kind] = top
            group[kind] = f"{gpu_model[kind.rank]}:{kind.instruction}"
    shapes: dict[str, Shape] = {}
    gamma: dict[Kind, float] = dict.fromkeys(top_s, 1.0)
    noise = durations.relative_noise(top_mhz)
    for name in sorted(set(group.values())):
        members = [k for k in top_s if group[k] == name]
        points = {k: _relative(durations, k, top_mhz[k.rank], top_s[k]) for k in members}
        shape = Shape((1.0,), (1.0,))
        for _ in range(ROUNDS):
            shape = _fit_shape(points, gamma)
            for k in members:
                gamma[k] = _fit_gamma(points[k], shape, noise)
        shapes[name] = shape
    return TimeModel(shapes, group, gamma, top_s)


def _relative(
    durations: Durations, kind: Kind, top_mhz: int, top_s: float
) -> list[tuple[float, float, float]]:
    """(x, duration relative to the top clock's, samples) for every lower clock seen."""
    return [
        (top_mhz / clock, trimmed_mean(samples) / top_s, float(len(samples)))
        for clock, samples in durations.seen[kind].items()
        if clock < top_mhz and samples
    ]


def _fit_shape(
    points: Mapping[Kind, Iterable[tuple[float, float, float]]], gamma: Mapping[Kind, float]
) -> Shape:
    rows = [
        (x, 1 + (ratio - 1) / gamma[kind], n * gamma[kind] ** 2)
        for kind, seen in points.items()
        for x, ratio, n in seen
    ]
    if not rows:
        return Shape((1.0,), (1.0,))
    x, y, weight = (np.array(column) for column in zip(*rows, strict=True))
    return fit_piecewise(x, y, weight, anchor=1.0)


def fit_piecewise(x: Array, y: Array, weight: Array, anchor: float, rising: bool = True) -> Shape:
    """Weighted least squares for a monotone piecewise-linear function with value `anchor` at x = 1.

    x, y, weight: shape (n,), x ≥ 1. Knots lie at the distinct x, thinned to at most eight so that
    clocks seen once or twice share a knot with their neighbours.
    """
    knots = _knots(x, weight)
    basis = np.array([np.interp(x, knots, row) for row in np.eye(len(knots))]).T
    smooth = _second_differences(knots) * np.sqrt(SMOOTHING)
    root = np.sqrt(weight)[:, None]
    rows = np.vstack([basis * root, smooth])
    target = np.concatenate([y * root[:, 0], np.zeros(len(smooth))])
    target = target - rows[:, 0] * anchor
    solution, *_ = np.linalg.lstsq(rows[:, 1:], target, rcond=None)
    values = np.concatenate([[anchor], solution])
    values = np.maximum.accumulate(values) if rising else np.minimum.accumulate(values)
    return Shape(tuple(knots.tolist()), tuple(values.tolist()))


def _knots(x: Array, weight: Array) -> Array:
    distinct = np.unique(np.round(x, 4))
    distinct = distinct[distinct > 1.0 + 1e-4]
    most = 7
    if len(distinct) > most:
        order = np.argsort(x)
        share = np.cumsum(weight[order]) / weight.sum()
        inner = np.interp(np.arange(1, most) / most, share, x[order])
        distinct = np.unique(np.concatenate([inner, [x.max()]]))
        distinct = distinct[distinct > 1.0 + 1e-4]
        wide_enough = np.concatenate([[True], np.diff(distinct) > 0.015])
        distinct = distinct[wide_enough]
    return np.concatenate([[1.0], distinct])


def _second_differences(knots: Array) -> Array:
    """Rows that measure the change of slope at each inner knot, scaled to a difference of 0.1."""
    rows = np.zeros((max(len(knots) - 2, 0), len(knots)))
    for i in range(1, len(knots) - 1):
        left, right = knots[i] - knots[i - 1], knots[i + 1] - knots[i]
        rows[i - 1, i - 1 : i + 2] = [0.1 / left, -0.1 / left - 0.1 / right, 0.1 / right]
    return rows


def _fit_gamma(points: Iterable[tuple[float, float, float]], shape: Shape, noise: float) -> float:
    precision, moment = 1 / GAMMA_SD**2, 1 / GAMMA_SD**2
    for x, ratio, n in points:
        slope = float(shape.at(x)) - 1
        precision += slope * slope * n / noise**2
        moment += slope * (ratio - 1) * n / noise**2
    return min(max(moment / precision, 0.2), 2.5)
