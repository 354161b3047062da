"""How much one arm of an experiment lies above the other, with an honest interval.

Iterations come one after another, most at lowered clocks (*held*), few at full clock (*full*), and
the logarithm of what each took or used is modelled as (Durbin and Koopman, Time Series Analysis by
State Space Methods, 2nd ed., ch. 4 and 6)

    full:  y = f + x + u + b' − b          held:  y = m + x + u + b' − b

    f, m   the arms' levels; m takes a free step where the plan was changed
    x      slow change that both arms share (temperature, data): x ← φ x + noise, variance a
    u      what is each iteration's own, of variance κ in the full arm and 1 in the held one
    b      the error with which the boundary to the next iteration is read, of variance β: what is
           read too much in one iteration is missing in the next

all times one unknown variance σ². What is asked for is f − m̄, m̄ being the mean level over all held
iterations. x is one of two kinds. Either it has wandered long since, and starts at the variance a
that it keeps. Or the job *settles*: GPUs get warm, caches fill, kernels are tuned; x starts at an
unknown distance from where it ends and decays to it without noise (a = 0, start of variance s),
up or down. The baseline lies where it is furthest off, and is no measure of full clock later on
unless x is known. The held iterations tell it, as x decays in them too; a decay over before they
begin only shows within the baseline, hardly, and what is left is the prior for it.

Nobody tells whether and how strongly a job drifts or settles (a, s, φ), how the arms' noises
compare (κ) or how coarse a counter is (β), and five iterations at full clock do not show it either:
each combination on a grid is filtered side by side, weighted by its likelihood times a prior, and
the interval is that of the mixture of their Student distributions (Box and Tiao, Bayesian Inference
in Statistical Analysis, 1973). So a job that is seen to drift or to settle has a wider interval,
and full-clock iterations spread over time narrow it again.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Interval = tuple[float, float, float]

F, M, SUM, X, BEFORE, AFTER = range(6)
"""The state: levels of the arms, sum of held levels, shared change, errors of both boundaries."""

MEMORY = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""Iterations over which x forgets (φ = e^(−1/MEMORY))."""

CHANGE = (0.001, 0.005, 0.03, 0.2, 1.0, 10.0)
"""Variance of x's noise, a (1 − φ²), over that of u."""

SETTLING = tuple(4 * 2 ** (k / 2) for k in range(11))
"""Iterations over which a start decays (φ = e^(−1/SETTLING)), 4 to 128. As close as this because a
strong start whose decay lies between two of them would be carried back to the baseline by a wrong
factor, and surely so. Slower ones are like a trend, which the kinds of x with a long memory follow;
faster ones are over within the baseline."""

SETTLED = (1.0, 4.0, 16.0, 64.0)
"""Variance of how far off the start is, s, over that of u: from what hides in one iteration's noise
to what anybody sees."""

NO_CHANGE, SETTLES = 0.3, 0.5
"""Prior probabilities that there is no shared change at all, and that there is only a start to
settle from, which is the rule rather than the exception: baselines are taken when jobs begin. Both
and what is left, that x wanders, are spread evenly over their kinds."""

NOISE_RATIO = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
NOISE_RATIO_PRIOR = (0.08, 0.12, 0.2, 0.2, 0.2, 0.12, 0.08)

BOUNDARY = (0.0, 0.3, 2.0)

UNKNOWN = 1e6
"""Prior variance of a level, over that of u."""

PLAN_STEP = 400.0
"""Prior variance of what another plan changes, over that of u."""

RESOLUTION = 1e-5
"""Relative; noise smaller than this is taken to be as large, or an emulated job without any would
make every interval a point."""

OUTLIER_SIGMAS = 6.0
OUTLIER = 0.05
"""An iteration this far off, both in sigmas and as a share, says nothing of the arms (a checkpoint,
a stall), whichever arm it is in."""

OUTLIERS_IN_A_ROW = 3
"""So many are no outliers: the job has another level, in both arms, by their mean distance."""

PRUNED = 1e-6
PRUNED_EVERY = 16
"""Combinations whose weight falls below PRUNED are followed no further; asked so often."""

FEWEST = 3
"""Iterations of each arm below which nothing is stated."""


@dataclass
class Contrast:
    """Filters one series of iterations, of both arms; bounded work and memory for each.

    boundaries: whether neighbours share the error of the boundary between them, as energies do.
    """

    boundaries: bool = False
    counts: list[int] = field(default_factory=lambda: [0, 0])
    """Iterations used of the full and of the held arm."""
    _last: int | None = None
    _outlying: list[float] = field(default_factory=list)
    _shift: float = 0.0
    """What the job's level has changed by."""
    _stated: dict[float, Interval] = field(default_factory=dict)
    """Intervals by their share, until more is seen: status asks for each of them several times."""

    def __post_init__(self) -> None:
        boundary = BOUNDARY if self.boundaries else (0.0,)
        ratios = zip(NOISE_RATIO, NOISE_RATIO_PRIOR, strict=True)
        grid = np.array(
            [
                (start, a, math.exp(-1 / tau), ratio, beta, math.log(prior * ratio_prior))
                for (start, a, tau, prior), (ratio, ratio_prior), beta in itertools.product(
                    _changes(), ratios, boundary
                )
            ]
        )
        start, self._change, self._keep, self._ratio, self._boundary, self._log = grid.T.copy()
        self._squares: Array = np.full(len(grid), RESOLUTION**2)
        self._mean: Array = np.zeros((len(grid), 6))
        self._cov: Array = np.zeros((len(grid), 6, 6))
        self._cov[:, X, X] = start
        self._cov[:, AFTER, AFTER] = self._boundary

    def replan(self) -> None:
        """Another plan is in force: the held level may be another."""
        self._stated.clear()
        if self.counts[M]:
            self._cov[:, M, M] += PLAN_STEP

    def add(self, number: int, value: float, *, held: bool) -> bool:
        """The iteration `number` took or used `value` > 0; False where it is an outlier."""
        arm = M if held else F
        self._stated.clear()
        self._pass(number)
        y = math.log(value) - self._shift
        if not self.counts[arm]:
            self._mean[:, arm] = y - self._mean[:, X] + self._mean[:, BEFORE]
            self._cov[:, arm, arm] = UNKNOWN
        gain, variance, error = self._innovation(arm, y)
        if self.counts[arm]:
            if self._is_outlier(variance, error):
                return False
            self._log -= 0.5 * np.log(variance)
            self._squares += error**2 / variance
        self._mean += gain * (error / variance)[:, None]
        self._cov -= gain[:, :, None] * (gain / variance[:, None])[:, None, :]
        self.counts[arm] += 1
        if held:
            self._accumulate()
        if sum(self.counts) % PRUNED_EVERY == 0:
            self._prune()
        return True

    def interval(self, share: float = 0.95) -> Interval | None:
        """(f − m̄, its lower and its upper bound); None while too little was seen."""
        if min(self.counts) < FEWEST:
            return None
        if share not in self._stated:
            self._stated[share] = self._interval(share)
        return self._stated[share]

    def _interval(self, share: float) -> Interval:
        weights, freedom = self._weights(), self._freedom
        pick = weights > 1e-6
        weights = weights[pick] / weights[pick].sum()
        n = self.counts[M]
        values = self._mean[pick, F] - self._mean[pick, SUM] / n
        cov = self._cov[pick]
        spread = cov[:, F, F] - 2 * cov[:, F, SUM] / n + cov[:, SUM, SUM] / n**2
        scales = np.sqrt(np.maximum(spread, 1e-18) * self._squares[pick] / freedom)
        tail = (1 - share) / 2
        low, high = (_quantile(q, values, scales, weights, freedom) for q in (tail, 1 - tail))
        return float(weights @ values), low, high

    @property
    def _freedom(self) -> int:
        return sum(max(n - 1, 0) for n in self.counts)

    def _weights(self) -> Array:
        log = self._log - 0.5 * self._freedom * np.log(self._squares)
        weights: Array = np.exp(log - log.max())
        weights /= weights.sum()
        return weights

    def _pass(self, number: int) -> None:
        """Time goes on to this iteration; its start is the last one's end where that was seen."""
        steps = 1 if self._last is None else max(number - self._last, 1)
        follows = self._last is not None and steps == 1
        self._last = number
        keep = self._keep**steps
        self._mean[:, X] *= keep
        self._cov[:, X, :] *= keep[:, None]
        self._cov[:, :, X] *= keep[:, None]
        self._cov[:, X, X] += self._change * (1 - keep**2)
        if follows:
            self._mean[:, BEFORE] = self._mean[:, AFTER]
            self._cov[:, BEFORE, :] = self._cov[:, AFTER, :]
            self._cov[:, :, BEFORE] = self._cov[:, :, AFTER]
        else:
            self._fresh(BEFORE)
        self._fresh(AFTER)

    def _fresh(self, state: int) -> None:
        """A boundary that nothing is known of."""
        self._mean[:, state] = 0.0
        self._cov[:, state, :] = 0.0
        self._cov[:, :, state] = 0.0
        self._cov[:, state, state] = self._boundary

    def _innovation(self, arm: int, y: float) -> tuple[Array, Array, Array]:
        """Covariance of the state with what is seen, variance of what is seen, and its error."""
        cov, mean = self._cov, self._mean
        gain: Array = cov[:, :, arm] + cov[:, :, X] + cov[:, :, AFTER] - cov[:, :, BEFORE]
        own = 1.0 if arm == M else self._ratio
        variance: Array = gain[:, arm] + gain[:, X] + gain[:, AFTER] - gain[:, BEFORE] + own
        error: Array = y - (mean[:, arm] + mean[:, X] + mean[:, AFTER] - mean[:, BEFORE])
        return gain, variance, error

    def _is_outlier(self, variance: Array, error: Array) -> bool:
        if self._freedom < FEWEST:
            return False
        best = int(self._weights().argmax())
        sigma = math.sqrt(variance[best] * self._squares[best] / self._freedom)
        if abs(error[best]) <= max(OUTLIER_SIGMAS * sigma, OUTLIER):
            self._outlying.clear()
            return False
        self._outlying.append(float(error[best]))
        if len(self._outlying) == OUTLIERS_IN_A_ROW:
            self._shift += sum(self._outlying) / OUTLIERS_IN_A_ROW
            self._outlying.clear()
        return True

    def _prune(self) -> None:
        keep = self._weights() > PRUNED
        self._change, self._keep, self._ratio = (
            of[keep] for of in (self._change, self._keep, self._ratio)
        )
        self._boundary, self._log = self._boundary[keep], self._log[keep]
        self._squares, self._mean, self._cov = (
            of[keep] for of in (self._squares, self._mean, self._cov)
        )

    def _accumulate(self) -> None:
        """The held level of this iteration joins the sum."""
        self._mean[:, SUM] += self._mean[:, M]
        self._cov[:, SUM, :] += self._cov[:, M, :]
        self._cov[:, :, SUM] += self._cov[:, :, M]


def _changes() -> list[tuple[float, float, float, float]]:
    """The kinds of x: its variance at the start and that it keeps, its memory, its probability."""
    settles = SETTLES / (len(SETTLING) * len(SETTLED))
    wanders = (1 - NO_CHANGE - SETTLES) / (len(MEMORY) * len(CHANGE))
    kept = [(q / -math.expm1(-2 / tau), tau) for tau in MEMORY for q in CHANGE]
    return [
        (0.0, 0.0, 1.0, NO_CHANGE),
        *((s, 0.0, tau, settles) for tau in SETTLING for s in SETTLED),
        *((a, a, tau, wanders) for a, tau in kept),
    ]


def _quantile(
    probability: float, values: Array, scales: Array, weights: Array, freedom: int
) -> float:
    """Of a mixture of Student distributions, by bisection."""
    reach = 60 * float(scales.max())
    low, high = float(values.min()) - reach, float(values.max()) + reach
    for _ in range(60):
        middle = (low + high) / 2
        below = float(weights @ _student((middle - values) / scales, freedom))
        low, high = (middle, high) if below < probability else (low, middle)
    return (low + high) / 2


def _student(t: Array, freedom: int) -> Array:
    """Distribution function, by Wallace's normal approximation (within 0.0005 from 4 on)."""
    squared = freedom * np.log1p(t**2 / freedom)
    factor = (8 * freedom + 1) / (8 * freedom + 3)
    above = _tail(factor * np.sqrt(squared))
    return np.where(t < 0, above, 1 - above)


def _tail(z: Array) -> Array:
    """How much of a standard normal lies above z ≥ 0, within 1e-7 (Abramowitz and Stegun, 7.1.26).

    As arrays: a loop over math.erfc kept the daemon from everything else for 30 ms an interval.
    """
    x = z / math.sqrt(2)
    u = 1 / (1 + 0.3275911 * x)
    powers = np.polyval([1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592, 0], u)
    return np.asarray(0.5 * powers * np.exp(-(x**2)), dtype=np.float64)
