"""What noise costs: plans that allow for it beside plans that do not.

    python benchmarks/noise.py [--data FOLDER] [--seconds BUDGET] [--iterations COUNT]
                               [--ratio RATIO …] [--confidence SHARE] [--microbatches M …]

GPT-3 175B on its measured profiles. "calm" is what a plan saves where there is no noise; "kept"
what a plan saves that allows for it, against full clock in the same noise. Both are then run for so
many iterations of fresh noise, that no planner has seen, by the evaluator: how much longer than the
deadline without noise (ratio × full clock's noise-free makespan) they take on average (with a
confidence: what that share of the iterations keeps).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from cases import BLOCKING_W, arguments, gpt3, measurements

from perseusd.core.model import Plan, Problem
from perseusd.core.planner import evaluate, noise, solve

NOISE = (0.005, 0.01, 0.03)
WRITES = (None, 8)
FIRST_FRESH_SEED = 1001


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="time budget of a solve")
    parser.add_argument("--iterations", type=int, default=1000, help="fresh ones per case")
    parser.add_argument("--ratio", type=float, nargs="+", default=[1.0])
    parser.add_argument("--microbatches", type=int, nargs="+", default=[12, 48])
    parser.add_argument("--confidence", type=float)
    told = parser.parse_args()
    folder = measurements(told.data)
    print(
        f"{'GPU':9} {'M':>3} {'ratio':>6} {'writes':>6} {'noise':>6} {'calm':>6} {'kept':>6} "
        f"{'share':>6} {'late: allowed for':>18} {'not allowed for':>16} {'s':>6}"
    )
    worst = -1.0
    for gpu in BLOCKING_W:
        for microbatches in told.microbatches:
            for ratio in told.ratio:
                for writes in WRITES:
                    settings = {
                        "deadline_ratio": ratio,
                        "max_writes": writes,
                        "time_budget_s": told.seconds,
                    }
                    problem = gpt3(folder, gpu, microbatches, **settings)
                    label = f"{gpu:9} {microbatches:3} {ratio:6.3f} {writes or 'free':>6}"
                    worst = max(worst, compare(label, problem, told.confidence, told.iterations))
    print(f"latest with the noise allowed for: {worst:+.3%}")


def compare(label: str, problem: Problem, confidence: float | None, iterations: int) -> float:
    """Print a line for each noise; the worst lateness of the plans that allow for it."""
    calm = solve(problem, clock=time.perf_counter)
    worst = -1.0
    for sd in NOISE:
        noisy = replace(problem, noise=sd, confidence=confidence)
        kept = solve(noisy, clock=time.perf_counter)
        late = lateness(noisy, [kept.plan, calm.plan], iterations, calm.deadline_s)
        worst = max(worst, late[0])
        print(
            f"{label} {sd:6.1%} {calm.saving:6.1%} {kept.saving:6.1%} "
            f"{kept.saving / calm.saving:6.0%} {late[0]:+18.3%} {late[1]:+16.3%} "
            f"{kept.solve_time_s:6.2f}",
            flush=True,
        )
    return worst


def lateness(
    problem: Problem, plans: Sequence[Plan], iterations: int, deadline_s: float
) -> list[float]:
    """Each plan's iteration time over the deadline, minus 1, on fresh samples."""
    samples = noise.of_problem(problem)[0].shape[1]
    fresh = [replace(problem, seed=FIRST_FRESH_SEED + k) for k in range(-(-iterations // samples))]
    times = [[evaluate(one, plan).iteration_time_s for one in fresh] for plan in plans]
    return [sum(each) / len(each) / deadline_s - 1 for each in times]


if __name__ == "__main__":
    main()
