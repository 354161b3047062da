"""What plans save, how far from the bound, and how long a solve takes.

    python benchmarks/plan_quality.py [--data FOLDER] [--seconds BUDGET]

On the measured GPT-3 175B profiles, and on the ten uneven workloads of stage_times.csv with the
curves of the same GPU family's profile scaled to each stage's measured times (energy scaled alike).
Every plan is timed by the evaluator, which is independent of the planner; "fresh" is how late it is
on average on samples of the noise that the planner has not seen (negative: early).
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from perseusd.core.model import Curve, Kind, Problem
from perseusd.core.planner import evaluate, solve
from perseusd.core.schedules import one_f_one_b, pipeline
from perseusd.traces.profile import read_profile

# Watts of a GPU waiting in communication, measured by the profiles' authors.
BLOCKING_W = {"a100_sxm": 83.64, "a40": 70.38}
FRESH_SEEDS = range(101, 109)
HEADER = (
    f"{'':44} {'M':>4} {'ratio':>6} {'noise':>6} {'writes':>9} "
    f"{'saved':>6} {'cut':>6} {'bound':>6} {'share':>6} {'late':>9} {'fresh':>8} {'s':>6}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=os.environ.get("PERSEUSD_DATA", beside))
    parser.add_argument("--seconds", type=float, default=2.0, help="time budget of a solve")
    arguments = parser.parse_args()
    folder = Path(arguments.data) / "perseus-sosp24"
    if not folder.is_dir():
        parser.error(f"no measurements at {folder}: name their folder with --data")
    print(HEADER)
    for name, problem in (*gpt3_cases(folder), *uneven_cases(folder)):
        show(name, replace(problem, time_budget_s=arguments.seconds))


def show(name: str, problem: Problem) -> None:
    """Solve, check and print one line."""
    result = solve(problem, clock=time.perf_counter)
    told = evaluate(problem, result.plan)
    microbatches = max(c.microbatch for c in problem.pipeline.orders[0]) + 1
    waited = told.energy_j / (1 - result.saving)
    bound = 1 - result.energy_lower_bound_j / waited
    cut = 1 - result.energy_lower_bound_writes_j / waited
    allowed = "free" if problem.max_writes is None else str(problem.max_writes)
    print(
        f"{name:44} {microbatches:4} {problem.deadline_ratio:6.3f} {problem.noise:6.1%} "
        f"{result.clock_writes:3} of {allowed:>2} {result.saving:6.1%} {cut:6.1%} {bound:6.1%} "
        f"{result.saving / bound:6.0%} {told.iteration_time_s / told.deadline_s - 1:9.1e} "
        f"{fresh_lateness(problem, result.plan):8.3%} {result.solve_time_s:6.2f}",
        flush=True,
    )


def fresh_lateness(problem: Problem, plan) -> float:
    """Mean iteration over the deadline, on samples not planned on."""
    if not problem.noise:
        return 0.0
    told = [evaluate(replace(problem, seed=seed), plan) for seed in FRESH_SEEDS]
    return sum(t.iteration_time_s for t in told) / sum(t.deadline_s for t in told) - 1


def gpt3_cases(folder: Path) -> Iterator[tuple[str, Problem]]:
    settings = (
        {"max_writes": 3},
        {"max_writes": 5, "full_clock_at_end": False},
        {"max_writes": 5},
        {"max_writes": 8},
        {"max_writes": 12},
        {"max_writes": None},
        {"max_writes": 8, "deadline_ratio": 1.003},
        {"max_writes": 8, "deadline_ratio": 1.003, "noise": 0.01},
        {"max_writes": 8, "deadline_ratio": 1.005, "noise": 0.03},
        {"max_writes": 8, "deadline_ratio": 1.2, "noise": 0.01},
    )
    for gpu in BLOCKING_W:
        curves = by_kind(profile(folder, gpu))
        for setting in settings:
            yield f"GPT-3 175B {gpu}", problem_of(gpu, curves, 8, 12, **setting)
        for microbatches in (48, 64):
            many = problem_of(gpu, curves, 8, microbatches, max_writes=6)
            yield f"GPT-3 175B {gpu}", many


def uneven_cases(folder: Path) -> Iterator[tuple[str, Problem]]:
    measured: dict[tuple[str, str], list[dict[str, str]]] = {}
    with (folder / "stage_times.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            measured.setdefault((row["gpu"], row["model"]), []).append(row)
    for (gpu, model), rows in measured.items():
        family = "a100_sxm" if gpu.startswith("a100") else "a40"
        curves = scaled(profile(folder, family), rows)
        for writes in (8, 12):
            problem = problem_of(family, curves, len(rows), 8, max_writes=writes)
            yield f"{model} {gpu}", problem


def scaled(borrowed: dict[tuple[int, str], Curve], rows: list[dict[str, str]]) -> dict[Kind, Curve]:
    """The profile's curves at these stages' times; the last stage takes the last one's."""
    last = max(stage for stage, _ in borrowed)
    curves = {}
    for row in rows:
        stage = int(row["stage"])
        for instruction in ("forward", "backward"):
            curve = borrowed[last if stage == len(rows) - 1 else 0, instruction]
            factor = float(row[f"{instruction}_s"]) / curve.time_s[-1]
            curves[Kind(stage, 0, instruction)] = Curve(
                curve.clock_mhz,
                tuple(t * factor for t in curve.time_s),
                tuple(e * factor for e in curve.energy_j),
            )
    return curves


def profile(folder: Path, gpu: str) -> dict[tuple[int, str], Curve]:
    return read_profile(folder / "stage_profile" / f"gpt3-175b_{gpu}.csv")


def by_kind(curves: dict[tuple[int, str], Curve]) -> dict[Kind, Curve]:
    return {Kind(stage, 0, i): curve for (stage, i), curve in curves.items()}


def problem_of(
    gpu: str, curves: dict[Kind, Curve], stages: int, microbatches: int, **settings
) -> Problem:
    built = pipeline(one_f_one_b(stages, microbatches))
    return Problem(built, curves, [BLOCKING_W[gpu]] * stages, **settings)


if __name__ == "__main__":
    main()
