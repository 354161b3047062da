"""What is published of GPU models: how time and power change with the clock, before any trial.

Model form (Perseus, SOSP 2024, and the DVFS literature): time ≈ a + b/f; power ≈ static +
c · V(f)² · f, V flat below a knee. With x = f_top / f, time relative to the top clock's is
1 + b·(x − 1), at and below the clock of a power cap; relative power is s + (1 − s)·v(x)²/x.

The numbers come from published least-energy clocks and what time and energy are there, not from
any measured curve: on A100 SXM energy per computation is least near 1065–1080 of 1410 MHz, at
1.20–1.25 × the time and 0.68–0.74 × the energy; on A40 at 945–1140 of 1740 MHz, at 1.12–1.25 × the
time and 0.72–0.81 × the energy, and from 1455 MHz up power is capped, so that clocks change little.
For H100 and H200 no such point is published with a source we could read; the same formula at
A100's shares is stated with twice the spread. Computations differ (one bound by memory hardly slows
down), hence spreads of a quarter of the effect and more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perseusd.core.learned.family import KNOTS, Array, Shape


@dataclass(frozen=True)
class Prior:
    """Of a training computation on one GPU model; x = f_top / f, values relative to the top clock.

    time_spread, power_spread: standard deviation of the logarithm of the value, relative to that
    logarithm, from one kind of computation to another and for what is not known.
    """

    time: Shape
    power: Shape
    time_spread: float
    power_spread: float
    source: str


@dataclass(frozen=True)
class _Facts:
    """slope: b; static: s; knee: fraction of the top clock below which voltage is flat;
    voltage: there, over the top clock's; cap: fraction of the top clock above which power is
    capped (clock and power then hardly change)."""

    names: tuple[str, ...]
    slope: float
    static: float
    knee: float
    voltage: float
    cap: float
    spread: float
    source: str


# A100: at x = 1.315 time 1.225, so b = 0.71, and energy 0.71, so power 0.58 = s + (1 − s)·v²/x with
# s = 0.35: v = 0.68. A40: the cap holds from x = 1.2 down to 1, so effective x' = x / 1.2; at
# f = 1040, x = 1.67, x' = 1.39 time 1.185, so b = 0.47, energy 0.765, so power 0.645: v = 0.80.
_A100 = "least-energy clock, time and energy there: Perseus artifact, A100 SXM"
_A40 = "least-energy clock, time and energy there, power cap from 1455 MHz: Perseus artifact, A40"
_HOPPER = "A100's shares, as nothing better is published; twice the spread"
_KNOWN = (
    _Facts(("A100", "A800", "A30"), 0.71, 0.35, 0.76, 0.68, 1.0, 0.25, _A100),
    _Facts(("A40", "A6000", "A10"), 0.47, 0.35, 0.60, 0.80, 0.836, 0.35, _A40),
    _Facts(("H100", "H200", "H800", "GH200"), 0.71, 0.35, 0.70, 0.68, 1.0, 0.5, _HOPPER),
)


def prior_for(gpu_model: str) -> Prior | None:
    """By the driver's name of the model, such as "NVIDIA A100-SXM4-80GB"; None where unknown."""
    words = gpu_model.upper().replace("-", " ").split()
    for facts in _KNOWN:
        if any(word == name for word in words for name in facts.names):
            return _prior(facts)
    return None


def _prior(facts: _Facts) -> Prior:
    effective = np.maximum(KNOTS * facts.cap, 1.0)  # a capped GPU runs no faster than at its cap
    time = 1 + facts.slope * (effective - 1)
    reach = max(1 / (facts.knee / facts.cap), 1.01)
    voltage = np.interp(effective, [1.0, reach], [1.0, facts.voltage])
    power = facts.static + (1 - facts.static) * voltage**2 / effective
    return Prior(_shape(time), _shape(power), facts.spread, facts.spread, facts.source)


def _shape(value: Array) -> Shape:
    return Shape(tuple(KNOTS.tolist()), tuple(value.tolist()))
