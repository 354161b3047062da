"""What observe-only mode predicts for the emulated workloads, beside what the true curves allow.

    python benchmarks/forecast.py

Half a minute of computing. The prediction knows every kind's time and energy at the top clock (here
without noise) and the prior of the GPU's model; the truth is a plan on the workload's own curves,
with the same planner, deadline and clock writes. Priors stand on numbers published with these
workloads, so this measures the way from a prior to a saving, not the prior.
"""

from __future__ import annotations

import dataclasses
import sys
import time

from perseusd.core.jobs.forecast import TILTS, foretold
from perseusd.core.learned.knowledge import GpuFacts
from perseusd.core.learned.priors import prior_for
from perseusd.core.model import Curve, Problem
from perseusd.core.planner import solve
from perseusd.emulation.workloads import Workload, listing
from perseusd.gpus.simulated import SPECS

DEADLINE_RATIO = 1.002
CLOCK_WRITES = 8
MIN_CLOCK_FRACTION = 0.5


def savings(workload: Workload) -> tuple[float, list[float]]:
    """(with the true curves, as predicted by TILTS)."""
    facts = GpuFacts("GPU-0", SPECS[workload.gpu].name, workload.clocks_mhz)
    prior, true = prior_for(facts.model), workload.problem_curves()
    if prior is None:
        raise SystemExit(f"nothing is published about {facts.model}")
    top = {
        kind: Curve(c.clock_mhz[-1:], c.time_s[-1:], c.energy_j[-1:]) for kind, c in true.items()
    }
    blocking = (workload.blocking_power_w,) * workload.stages
    problem = Problem(
        workload.pipeline(), true, blocking, DEADLINE_RATIO, max_writes=CLOCK_WRITES, noise=0.01
    )
    problems = [problem]
    for tilt in TILTS:
        curves = {k: foretold(c, prior, facts, MIN_CLOCK_FRACTION, tilt) for k, c in top.items()}
        problems.append(dataclasses.replace(problem, curves=curves))
    possible, *predicted = (solve(p, clock=time.monotonic).saving for p in problems)
    return possible, predicted


def main() -> int:
    print("| workload | GPU | true curves | predicted | interval | holds the truth |")
    print("|---|---|---|---|---|---|")
    for workload in listing():
        possible, predicted = savings(workload)
        low, high = min(predicted), max(predicted)
        holds = "yes" if low <= possible <= high else "NO"
        print(
            f"| {workload.name} | {workload.gpu} | {possible:.1%} | {predicted[0]:.1%} | "
            f"{low:.1%} to {high:.1%} | {holds} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
