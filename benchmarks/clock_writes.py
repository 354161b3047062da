"""How many clock writes pay, by how long one takes and how many GPUs share a node.

    python benchmarks/clock_writes.py [--data FOLDER] [--seconds BUDGET] [--microbatches M]

GPT-3 175B on 8 stages of one GPU each, deadline the iteration time at full clock. `auto` chooses
the number of writes, net of what writing costs (docs/clock-writes.md). Beside it, the plan that
`auto` makes as if writes took no time, run where they take as long: what it saves and how late it
is. All values are the independent evaluator's. Prints the table of the docs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from cases import BLOCKING_W, arguments, gpt3, measurements

from perseusd.core.model import PlanResult, Problem
from perseusd.core.planner import evaluate
from perseusd.core.planner.auto import solve_auto

LATENCIES_MS = (0, 1, 5, 15, 50)
GPUS_PER_NODE = (1, 8)
HEADER = (
    "| GPU | GPUs per node | one write takes | `auto` writes (of all GPUs) | saves | ends "
    "| made as if at once: saves | late by |"
)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="time budget of an auto solve")
    parser.add_argument("--microbatches", type=int, default=12)
    asked = parser.parse_args()
    print(HEADER)
    print("|" + "---|" * (HEADER.count("|") - 1))
    for line in table(measurements(asked.data), asked.microbatches, asked.seconds):
        print(line, flush=True)


def table(folder: Path, microbatches: int, seconds: float) -> Iterator[str]:
    for gpu in BLOCKING_W:
        problem = gpt3(folder, gpu, microbatches, time_budget_s=seconds)
        at_once = solve_auto(problem, clock=time.perf_counter)
        for gpus_per_node in GPUS_PER_NODE:
            for latency_ms in LATENCIES_MS:
                slow = replace(
                    problem, write_latency_s=latency_ms / 1000, gpus_per_node=gpus_per_node
                )
                result = solve_auto(slow, clock=time.perf_counter) if latency_ms else at_once
                yield row(gpu, slow, result, at_once)


def row(gpu: str, problem: Problem, result: PlanResult, at_once: PlanResult) -> str:
    told, ignorant = evaluate(problem, result.plan), evaluate(problem, at_once.plan)
    waited_j = result.energy_j / (1 - result.saving)
    total = sum(written(clocks) for clocks in result.plan.clocks)
    cells = (
        gpu,
        problem.gpus_per_node,
        f"{problem.write_latency_s * 1000:.0f} ms",
        f"{result.clock_writes} ({total})",
        f"{1 - told.energy_j / waited_j:.1%}",
        f"{told.iteration_time_s / told.deadline_s - 1:+.2%}",
        f"{1 - ignorant.energy_j / waited_j:.1%}",
        f"{max(0.0, ignorant.iteration_time_s / told.deadline_s - 1):.2%}",
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def written(clocks: tuple[int | None, ...]) -> int:
    """Writes of one rank, which begins and ends at full clock."""
    around = (None, *clocks, None)
    return sum(a != b for a, b in pairwise(around))


if __name__ == "__main__":
    main()
