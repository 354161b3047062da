"""The jobs that can be emulated: their stages' time and energy at every clock of their GPU.

GPT-3 175B follows its own measured profiles. Of the ten others the stage times were measured at the
highest clock only; how their time and energy change with the clock is borrowed from GPT-3 175B's
profile on the same GPU family, energy in proportion to time. Sources: tables.py.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from perseusd.core.graph import Graph
from perseusd.core.model import Computation, Curve, Kind, Pipeline
from perseusd.core.schedules import one_f_one_b, pipeline
from perseusd.emulation.curves import scaled, work_curve
from perseusd.emulation.tables import BLOCKING_POWER_W, PROFILES, STAGE_TIMES, Points
from perseusd.errors import UsageError
from perseusd.gpus.physics import WorkCurve
from perseusd.gpus.simulated import SPECS
from perseusd.traces.profile import read_profile

INSTRUCTIONS = ("forward", "backward")

_GPT3 = "gpt3-175b"
# One microbatch's activations to the next stage: some 50 MB for GPT-3 175B, shared by eight tensor
# parallel ranks, and 20 to 35 MB for the others, at 10 to 25 GB/s.
_COMMUNICATION_S = {"a100-sxm": 0.0003, "a100-pcie": 0.001, "a40": 0.001}
_FAMILY = {"a100-sxm": "a100", "a100-pcie": "a100", "a40": "a40"}
# Few microbatches, so that four minutes hold learning and some thirty iterations after it.
_MICROBATCHES = {
    (_GPT3, "a100-sxm"): 12,
    (_GPT3, "a40"): 6,
    ("gpt3-1.3b", "a100-pcie"): 6,
    ("bloom-3b", "a100-pcie"): 6,
    ("bert-1.3b", "a100-pcie"): 16,
    ("t5-3b", "a100-pcie"): 12,
    ("wide-resnet-1.5b", "a100-pcie"): 8,
    ("gpt3-2.7b", "a40"): 4,
    ("bloom-3b", "a40"): 4,
    ("bert-1.3b", "a40"): 16,
    ("t5-3b", "a40"): 8,
    ("wide-resnet-1.5b", "a40"): 8,
}
_PROFILE_ITERATION_S = 4.0


@dataclass(frozen=True)
class Workload:
    """One pipeline-parallel job on one kind of GPU, one GPU a stage, scheduled 1F1B.

    curves: by (stage, instruction), aligned with the GPU's supported clocks.
    microbatches: how many one iteration has unless said otherwise.
    communication_s: from one stage's end to the neighbour's earliest start.
    source: where the numbers come from, in words.
    """

    name: str
    gpu: str
    stages: int
    microbatches: int
    curves: Mapping[tuple[int, str], WorkCurve]
    blocking_power_w: float
    communication_s: float
    source: str

    @property
    def clocks_mhz(self) -> tuple[int, ...]:
        return tuple(SPECS[self.gpu].supported_clocks_mhz)

    def pipeline(self, microbatches: int | None = None) -> Pipeline:
        """One iteration: every rank's order and the dependencies between ranks."""
        orders = one_f_one_b(self.stages, microbatches or self.microbatches)
        return pipeline(orders, self.communication_s)

    def problem_curves(self) -> dict[Kind, Curve]:
        """The true curves as the planner takes them; the daemon never sees these."""
        return {
            Kind(stage, 0, instruction): Curve(self.clocks_mhz, curve.time_s, curve.energy_j)
            for (stage, instruction), curve in self.curves.items()
        }

    def full_clock_time_s(self, microbatches: int | None = None) -> float:
        """An iteration's longest path with every computation at the highest clock, no noise."""
        graph = Graph(self.pipeline(microbatches))
        durations = np.array([self._full_clock_s(node) for node in graph.nodes])
        return float(graph.makespan(durations))

    def _full_clock_s(self, computation: Computation) -> float:
        return self.curves[computation.rank, computation.instruction].time_s[-1]


def names() -> tuple[tuple[str, str], ...]:
    """Every (workload, GPU) there is."""
    return tuple(_MICROBATCHES)


def load_workload(name: str, gpu: str | None = None) -> Workload:
    """The named workload on `gpu`, or on the first GPU it is listed for."""
    gpus = [g for n, g in names() if n == name]
    if not gpus:
        raise UsageError(_unknown("workload", name, sorted({n for n, _ in names()})))
    if gpu is not None and gpu not in SPECS:
        raise UsageError(_unknown("GPU", gpu, sorted(SPECS)))
    if gpu is not None and gpu not in gpus:
        raise UsageError(
            f"workload {name!r} was not measured on {gpu!r}, only on {' and '.join(gpus)}: "
            "give one of those with --gpu, or another workload (perseusd demo --list)"
        )
    return _built(name, gpu or gpus[0])


def load_profile_workload(
    path: Path, gpu: str | None, blocking_power_w: float, microbatches: int | None = None
) -> Workload:
    """A job whose stages behave as measured in a profile file.

    gpu: the emulated GPU; None takes the first that supports every clock of the profile.
    microbatches: None takes as many as keep an iteration near four seconds.
    Raises ProfileError where the file is wrong, UsageError where it does not fit the GPU.
    """
    points = {key: _points(curve) for key, curve in read_profile(path).items()}
    stages = 1 + max(stage for stage, _ in points)
    _check_complete(path, points, stages)
    _check_power(path, points, blocking_power_w)
    gpu = _gpu_for(path, points, gpu)
    curves = _curves(points, gpu, blocking_power_w)
    if microbatches is None:
        microbatches = _fitting_microbatches(curves, stages)
    return Workload(
        name=path.stem,
        gpu=gpu,
        stages=stages,
        microbatches=microbatches,
        curves=curves,
        blocking_power_w=blocking_power_w,
        communication_s=_COMMUNICATION_S[gpu],
        source=f"measured profile {path}",
    )


def _built(name: str, gpu: str) -> Workload:
    points = _measured(gpu) if name == _GPT3 else _borrowed(name, gpu)
    blocking_power_w = BLOCKING_POWER_W[_FAMILY[gpu]]
    return Workload(
        name=name,
        gpu=gpu,
        stages=1 + max(stage for stage, _ in points),
        microbatches=_MICROBATCHES[name, gpu],
        curves=_curves(points, gpu, blocking_power_w),
        blocking_power_w=blocking_power_w,
        communication_s=_COMMUNICATION_S[gpu],
        source=_source(name, gpu),
    )


def _measured(gpu: str) -> dict[tuple[int, str], Points]:
    family, stages = _FAMILY[gpu], 8
    return {
        (stage, i): PROFILES[family, "last" if stage == stages - 1 else "inner", i]
        for stage in range(stages)
        for i in INSTRUCTIONS
    }


def _borrowed(name: str, gpu: str) -> dict[tuple[int, str], Points]:
    found = {}
    for stage, times in enumerate(STAGE_TIMES[name, gpu]):
        for instruction, time_s in zip(INSTRUCTIONS, times, strict=True):
            shape = PROFILES[_FAMILY[gpu], "inner", instruction]
            found[stage, instruction] = scaled(shape, time_s / shape[-1][1])
    return found


def _source(name: str, gpu: str) -> str:
    if name == _GPT3:
        return f"measured profile of every stage on {gpu} (Perseus, SOSP 2024)"
    family = {"a100": "A100 SXM", "a40": "A40"}[_FAMILY[gpu]]
    return (
        "stage times measured at the highest clock (Perseus, SOSP 2024); how time and energy "
        f"change with the clock is borrowed from GPT-3 175B on {family}, scaled in time"
    )


def _curves(
    points: Mapping[tuple[int, str], Points], gpu: str, blocking_power_w: float
) -> dict[tuple[int, str], WorkCurve]:
    clocks = SPECS[gpu].supported_clocks_mhz
    return {key: work_curve(p, clocks, blocking_power_w) for key, p in points.items()}


def _points(curve: Curve) -> Points:
    return tuple(zip(curve.clock_mhz, curve.time_s, curve.energy_j, strict=True))


def _check_complete(path: Path, keys: Iterable[tuple[int, str]], stages: int) -> None:
    have = set(keys)
    wanted = {(stage, i) for stage in range(stages) for i in INSTRUCTIONS}
    for stage, instruction in sorted(wanted - have):
        raise UsageError(
            f"{path}: stage {stage} has no {instruction!r}: the demo runs 1F1B and needs forward "
            f"and backward of each of the {stages} stages"
        )
    for stage, instruction in sorted(have - wanted):
        raise UsageError(
            f"{path}: stage {stage} has {instruction!r}: the demo runs 1F1B, which has forward "
            "and backward only"
        )


def _check_power(
    path: Path, points: Mapping[tuple[int, str], Points], blocking_power_w: float
) -> None:
    for (stage, instruction), measured in points.items():
        for clock, time, energy in measured:
            if energy / time <= blocking_power_w:
                raise UsageError(
                    f"{path}: {instruction} of stage {stage} takes {energy / time:.1f} W at "
                    f"{clock} MHz, no more than the blocking power of {blocking_power_w:g} W: "
                    "give --blocking-power, the power of a GPU that waits"
                )


def _gpu_for(path: Path, points: Mapping[tuple[int, str], Points], gpu: str | None) -> str:
    clocks = {clock for measured in points.values() for clock, _, _ in measured}
    if gpu is not None and gpu not in SPECS:
        raise UsageError(_unknown("GPU", gpu, sorted(SPECS)))
    candidates = [gpu] if gpu is not None else list(SPECS)
    for candidate in candidates:
        if max(clocks) <= max(SPECS[candidate].supported_clocks_mhz):
            return candidate
    raise UsageError(
        f"{path}: measured up to {max(clocks)} MHz, which {' and '.join(candidates)} cannot run: "
        f"choose the emulated GPU with --gpu, one of {', '.join(sorted(SPECS))}"
    )


def _fitting_microbatches(curves: Mapping[tuple[int, str], WorkCurve], stages: int) -> int:
    slowest_s = max(
        sum(curves[stage, i].time_s[-1] for i in INSTRUCTIONS) for stage in range(stages)
    )
    return min(max(round(_PROFILE_ITERATION_S / slowest_s) - (stages - 1), 4), 16)


def _unknown(what: str, value: str, known: list[str]) -> str:
    near = difflib.get_close_matches(value, known, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"unknown {what} {value!r}{hint}: known are {', '.join(known)}"


def listing() -> Iterator[Workload]:
    """Every named workload, built."""
    return (load_workload(name, gpu) for name, gpu in names())
