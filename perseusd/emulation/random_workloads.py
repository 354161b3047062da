"""Jobs whose curves are drawn at random, so that nothing is tuned to the named workloads.

A computation is a bundle of kernels. Each is bound by compute (its time goes as 1/f) below a clock
of its own and by memory (its time stays) above it, and some of the time is none of the SM clock's
business at all; so time as a function of the clock is a sum of kinks, which no a + b/f and no
low-order polynomial is. Power is static, plus what memory draws, plus activity × V(f)² f with V
flat below a knee; a power limit, on some jobs, holds the clock of the kinds that would exceed it.
Smooth wiggles of 1 to 2 % lie over both, as they do over real profiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from perseusd.emulation.workloads import INSTRUCTIONS, Workload
from perseusd.gpus.physics import WorkCurve, capped_index
from perseusd.gpus.simulated import SPECS

STAGES = (2, 8)
MOST_MICROBATCHES = 16
ITERATION_S = (2.0, 6.0)
MOST_IMBALANCE = 0.4
BACKWARD_RATIO = (1.5, 2.5)
CAPPED_SHARE = 0.35
"""Of jobs that meet their power limit."""

POWER_LIMIT_W = {"a100-sxm": 400.0, "a100-pcie": 300.0, "a40": 300.0}
_KERNELS = 5
_WIGGLE = (0.01, 0.02)
"""From trough to crest."""
_LEAST_ABOVE_BLOCKING = 1.05
"""A GPU that computes draws at least this many times what it draws waiting."""


@dataclass(frozen=True)
class _Silicon:
    """What all GPUs of one job share. Clocks relative to the highest, powers in watts."""

    clocks_mhz: tuple[int, ...]
    static_w: float
    blocking_w: float
    knee: float
    voltage: float
    """At the highest clock, relative to the flat part."""
    dynamic_w: float
    """At the highest clock and full activity."""
    limit_w: float | None

    def switching(self, x: float) -> float:
        """V(f)² f relative to the highest clock's; x = f / f_top."""
        rise = (self.voltage - 1) / (1 - self.knee)
        volts = (1 + rise * max(0.0, x - self.knee)) / self.voltage
        return volts * volts * x


@dataclass(frozen=True)
class _Mix:
    """What kind of work a computation is made of. kernels: (share of its time, from which clock on
    it is bound by memory); the shares and `fixed`, the share of no clock's business, sum to 1."""

    kernels: tuple[tuple[float, float], ...]
    fixed: float
    activity: float
    memory_w: float


def random_workload(seed: int) -> Workload:
    """The job of this seed: always the same, named `random-SEED`."""
    draw = Random(f"random workload {seed}")
    gpu = draw.choice(sorted(POWER_LIMIT_W))
    stages = draw.randint(*STAGES)
    microbatches = draw.randint(max(4, stages // 2 + 1), MOST_MICROBATCHES)
    silicon = _silicon(draw, gpu)
    mixes = {instruction: _mix(draw) for instruction in INSTRUCTIONS}
    curves = {
        (stage, instruction): _curve(draw, _varied(draw, mixes[instruction]), silicon, seconds)
        for stage, times in enumerate(_stage_times(draw, stages))
        for instruction, seconds in times.items()
    }
    unscaled = Workload(
        name=f"random-{seed}",
        gpu=gpu,
        stages=stages,
        microbatches=microbatches,
        curves=curves,
        blocking_power_w=silicon.blocking_w,
        communication_s=draw.uniform(0.0002, 0.002),
        source="drawn at random",
    )
    return _lasting(unscaled, draw.uniform(*ITERATION_S))


def _silicon(draw: Random, gpu: str) -> _Silicon:
    limit_w = POWER_LIMIT_W[gpu]
    static_w = draw.uniform(0.15, 0.28) * limit_w
    top_w = draw.uniform(0.7, 0.98) * limit_w
    capped = draw.random() < CAPPED_SHARE
    return _Silicon(
        clocks_mhz=tuple(SPECS[gpu].supported_clocks_mhz),
        static_w=static_w,
        blocking_w=static_w * draw.uniform(1.0, 1.4),
        knee=draw.uniform(0.5, 0.8),
        voltage=draw.uniform(1.25, 1.5),
        dynamic_w=top_w - static_w,
        limit_w=draw.uniform(0.8, 0.95) * top_w if capped else None,
    )


def _mix(draw: Random) -> _Mix:
    """A backward's kernels have little to do with a forward's."""
    fixed = draw.uniform(0.0, 0.1)
    weights = [draw.random() + 0.05 for _ in range(_KERNELS)]
    total = sum(weights) / (1 - fixed)
    bound_by_memory = draw.uniform(0.1, 0.6)
    kernels = tuple(
        (w / total, draw.uniform(0.5, 1.0) if draw.random() < bound_by_memory else 1.0)
        for w in weights
    )
    return _Mix(kernels, fixed, draw.uniform(0.75, 1.0), draw.uniform(5.0, 40.0))


def _varied(draw: Random, mix: _Mix) -> _Mix:
    """The same work on another stage: nearly, and on few stages something else."""
    if draw.random() < 0.1:
        return _mix(draw)
    kernels = tuple((w, min(1.0, k * draw.uniform(0.95, 1.05))) for w, k in mix.kernels)
    return replace(mix, kernels=kernels, activity=min(1.0, mix.activity * draw.uniform(0.95, 1.05)))


def _stage_times(draw: Random, stages: int) -> list[dict[str, float]]:
    """At the highest clock, relative: the slowest stage is up to 1 + MOST_IMBALANCE."""
    imbalance = draw.uniform(0, MOST_IMBALANCE)
    ratio = draw.uniform(*BACKWARD_RATIO)
    times = []
    for _ in range(stages):
        forward = 1 + draw.uniform(0, imbalance)
        backward = min(max(ratio * draw.uniform(0.95, 1.05), BACKWARD_RATIO[0]), BACKWARD_RATIO[1])
        times.append({"forward": forward, "backward": forward * backward})
    return times


def _curve(draw: Random, mix: _Mix, silicon: _Silicon, seconds: float) -> WorkCurve:
    """seconds: at the highest clock, or at the highest that the power limit allows."""
    top_mhz = silicon.clocks_mhz[-1]
    relative = [clock / top_mhz for clock in silicon.clocks_mhz]
    slower, hungrier = _wiggle(draw), _wiggle(draw)
    times = _falling([seconds * _time(mix, x) * slower(x) / slower(1.0) for x in relative])
    least_w = _LEAST_ABOVE_BLOCKING * silicon.blocking_w
    watts = [max(least_w, _power(mix, silicon, x) * hungrier(x)) for x in relative]
    curve = WorkCurve(tuple(times), tuple(t * w for t, w in zip(times, watts, strict=True)))
    if silicon.limit_w is not None:
        curve = _limited(curve, silicon.limit_w)
    return _longer(curve, seconds / curve.time_s[-1])


def _time(mix: _Mix, x: float) -> float:
    """Relative to the highest clock's."""
    return mix.fixed + sum(w * max(1.0, k / x) for w, k in mix.kernels)


def _power(mix: _Mix, silicon: _Silicon, x: float) -> float:
    """The longer kernels take, the less of the time memory and fixed work fill."""
    memory_w = mix.memory_w / _time(mix, x)
    return silicon.static_w + memory_w + silicon.dynamic_w * mix.activity * silicon.switching(x)


class _Wave:
    def __init__(self, amplitude: float, periods: float, phase: float) -> None:
        self._amplitude, self._periods, self._phase = amplitude, periods, phase

    def __call__(self, x: float) -> float:
        return 1 + self._amplitude * math.sin(2 * math.pi * (self._periods * x + self._phase))


def _wiggle(draw: Random) -> _Wave:
    return _Wave(draw.uniform(*_WIGGLE) / 2, draw.uniform(2.0, 5.0), draw.random())


def _falling(times: Sequence[float]) -> list[float]:
    """A higher clock is never slower: where a wiggle says so, it is as fast."""
    kept: list[float] = []
    for time in reversed(times):
        kept.append(max(time, kept[-1]) if kept else time)
    return kept[::-1]


def _limited(curve: WorkCurve, limit_w: float) -> WorkCurve:
    """Above the highest clock that keeps the limit nothing changes."""
    cap = capped_index(curve, limit_w)
    held = [min(i, cap) for i in range(len(curve.time_s))]
    return WorkCurve(tuple(curve.time_s[i] for i in held), tuple(curve.energy_j[i] for i in held))


def _lasting(workload: Workload, iteration_s: float) -> Workload:
    """The same with all computations so long that an iteration at full clock lasts so long."""
    lags_s = 2 * (workload.stages - 1) * workload.communication_s
    for _ in range(3):  # which path is longest hardly depends on the scale
        whole_s = workload.full_clock_time_s()
        factor = (iteration_s - lags_s) / (whole_s - lags_s)
        curves = {key: _longer(curve, factor) for key, curve in workload.curves.items()}
        workload = replace(workload, curves=curves)
    return workload


def _longer(curve: WorkCurve, factor: float) -> WorkCurve:
    """The same power for longer."""
    return WorkCurve(
        tuple(t * factor for t in curve.time_s), tuple(e * factor for e in curve.energy_j)
    )
