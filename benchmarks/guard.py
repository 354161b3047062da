"""What disturbances cost a job under the daemon's care, in virtual time.

    python benchmarks/guard.py [--workload NAME@GPU] [--noise F ...] [--seeds K] [--only TEXT]

Each disturbance befalls a job that is held, or is being learned. For each: the most iterations in a
row that were more than 1 % slower than the same iterations at full clock (same noise, same
disturbance), the slowest one, the mean slowdown from the disturbance on, how many iterations later
the job was held for good, how many of them it was not held, and how many held iterations' saving
was lost. No more than three in a row are allowed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from perseusd.emulation.guard_cases import CASES, MOST_IN_A_ROW, Outcome, disturbed
from perseusd.emulation.workloads import load_workload

COLUMNS = "noise seed  in a row   worst %  mean % held after not held   lost"
HEADER = f"{'disturbance':42} {COLUMNS}"


def main() -> int:
    """0 where every run keeps the promise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", default="bert-1.3b@a100-pcie")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.01, 0.03])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--jobs", type=int, default=1)
    told = parser.parse_args()
    print(HEADER, flush=True)
    longest = []
    for noise, seed, outcome in _outcomes(told):
        print(_row(noise, seed, outcome), flush=True)
        longest.append(outcome.longest)
    broken = sum(rows > MOST_IN_A_ROW for rows in longest)
    print(f"{len(longest)} runs; most in a row {max(longest)}; {broken} over {MOST_IN_A_ROW}")
    return int(broken > 0)


def _outcomes(told: argparse.Namespace) -> Iterator[tuple[float, int, Outcome]]:
    runs = [
        (number, told.workload, noise, seed)
        for number, case in enumerate(CASES)
        if told.only in case.name
        for noise in told.noise
        for seed in range(told.seeds)
    ]
    with ProcessPoolExecutor(told.jobs, mp_context=get_context("spawn")) as pool:
        for (_, _, noise, seed), outcome in zip(runs, pool.map(_run, runs), strict=True):
            yield noise, seed, outcome


def _run(run: tuple[int, str, float, int]) -> Outcome:
    number, workload, noise, seed = run
    outcome, _ = disturbed(CASES[number], load_workload(*workload.split("@")), noise, seed)
    return outcome


def _row(noise: float, seed: int, seen: Outcome) -> str:
    held = "never" if seen.held_after is None else str(seen.held_after)
    lost = "" if seen.lost is None else f"{seen.lost:.1f}"
    return (
        f"{seen.name:42} {noise:5.2f} {seed:4d} {seen.longest:8d} {100 * seen.worst:8.2f} "
        f"{100 * seen.mean:7.2f} {held:>10} {seen.left:8d} {lost:>6}"
    )


if __name__ == "__main__":
    sys.exit(main())
