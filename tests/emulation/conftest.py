"""A small job that runs in milliseconds, on GPUs that follow t ∝ 1/f."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from perseusd.core.model import Computation
from perseusd.emulation.records import IterationRecord, Span
from perseusd.emulation.workloads import Workload
from perseusd.gpus.physics import WorkCurve
from perseusd.gpus.simulated import SPECS, SimulatedNode, create_node

GPU = "a100-sxm"
BLOCKING_W = 80.0


def work(top_s: float) -> WorkCurve:
    clocks = SPECS[GPU].supported_clocks_mhz
    times = tuple(top_s * clocks[-1] / clock for clock in clocks)
    powers = (90 + 300 * (clock / clocks[-1]) ** 3 for clock in clocks)
    return WorkCurve(times, tuple(p * t for p, t in zip(powers, times, strict=True)))


@pytest.fixture
def small() -> Workload:
    """Three uneven stages, tens of milliseconds a computation."""
    curves = {}
    for stage, scale in enumerate((1.0, 1.2, 0.8)):
        curves[stage, "forward"] = work(0.02 * scale)
        curves[stage, "backward"] = work(0.04 * scale)
    return Workload(
        name="small",
        gpu=GPU,
        stages=3,
        microbatches=4,
        curves=curves,
        blocking_power_w=BLOCKING_W,
        communication_s=0.001,
        source="made up",
    )


@pytest.fixture
def node(tmp_path: Path) -> Iterator[SimulatedNode]:
    made = create_node(tmp_path / "simulated-gpus", SPECS[GPU], 3)
    yield made
    made.close()


class Recorder:
    """Makes consecutive iterations of one GPU with one computation each."""

    def __init__(self) -> None:
        self.records: list[IterationRecord] = []
        self._end_ns, self._energy_j, self._writes = 0, 0.0, 0

    def add(
        self,
        count: int,
        time_s: float,
        energy_j: float,
        clock_mhz: int = 1410,
        writes: int = 0,
        straggling: bool = False,
    ) -> None:
        for _ in range(count):
            start_ns, self._end_ns = self._end_ns, self._end_ns + round(time_s * 1e9)
            self._energy_j += energy_j
            self._writes += writes
            span = Span(
                Computation(0, 0, "forward", 0), start_ns, self._end_ns, clock_mhz, energy_j
            )
            self.records.append(
                IterationRecord(
                    iteration=len(self.records),
                    start_ns=start_ns,
                    end_ns=self._end_ns,
                    energy_j=(self._energy_j,),
                    clock_writes=(self._writes,),
                    spans=((span,),),
                    straggling=straggling,
                )
            )


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()
