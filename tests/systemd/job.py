"""Run inside the machine: a small emulated job on the simulated GPUs behind its NVML library.

`job.py NODE RUNTIME_DIR` prints its workers' process ids, by stage, and trains until its standard
input ends.
"""

from __future__ import annotations

import select
import sys
from pathlib import Path

from perseusd.emulation.job import EmulatedJob, JobOptions
from perseusd.emulation.workloads import Workload
from perseusd.errors import PerseusError
from perseusd.gpus.physics import WorkCurve
from perseusd.gpus.simulated import SPECS

GPU = "a100-sxm"
SHARES = (1.0, 0.6, 0.7)  # of the longest stage: the others have slack


def work(top_s: float) -> WorkCurve:
    clocks = SPECS[GPU].supported_clocks_mhz
    times = tuple(top_s * clocks[-1] / clock for clock in clocks)
    powers = (90 + 300 * (clock / clocks[-1]) ** 3 for clock in clocks)
    return WorkCurve(times, tuple(p * t for p, t in zip(powers, times, strict=True)))


def main() -> int:
    node, runtime_dir = (Path(word) for word in sys.argv[1:])
    curves = {}
    for stage, share in enumerate(SHARES):
        curves[stage, "forward"] = work(0.02 * share)
        curves[stage, "backward"] = work(0.04 * share)
    workload = Workload(
        name="small",
        gpu=GPU,
        stages=len(SHARES),
        microbatches=4,
        curves=curves,
        blocking_power_w=80.0,
        communication_s=0.001,
        source="made up",
    )
    with EmulatedJob(workload, node, runtime_dir, JobOptions(microbatches=4, job="small")) as job:
        sys.stdout.write(" ".join(map(str, job.pids)) + "\n")
        sys.stdout.flush()
        try:
            while not select.select([sys.stdin], [], [], 0.05)[0]:
                job.check()
        except PerseusError as error:  # a worker was killed: that is what tests do
            sys.stderr.write(f"{error}\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
