"""The planner beside lowtime: how near the bound its plans are, and how soon.

    python benchmarks/planner.py [--data FOLDER] [--only PART …] [--json FILE]

Parts, each a claim of the README:
  gaps     energy over the certified bound, GPT-3 175B × microbatches × deadlines, uneven workloads
  speed    bound alone, bound and plan, at 1,536 to 16,384 computations; memory; a known frontier
  writes   saving within a budget of clock writes, beside the certified limit for that budget
  lowtime  lowtime's plans at their true times beside ours; the whole frontier's time beside ours
Every plan is timed by an evaluator that shares no code with the planner. One process, one core.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from cases import BLOCKING_W, arguments, gpt3, measurements, uneven

from perseusd.core.model import Problem
from perseusd.core.planner import evaluate, lower_bound, solve
from perseusd.core.planner.bound import certified_bound
from perseusd.core.planner.deadline import relaxed
from perseusd.core.planner.frontier import Frontier, frontier
from perseusd.core.planner.hulls import Hulls
from perseusd.core.planner.instance import Instance

MICROBATCHES = (12, 24, 48, 96)
RATIOS = (1.0, 1.005, 1.02, 1.05, 1.1, 1.2)
SIZES = {1536: 0.2, 8192: 1.2, 16384: 3.0}  # computations: seconds for bound and plan
LATE = 1e-9  # relative, by the evaluator
Row = dict[str, object]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", type=Path, help="write every figure there")
    parser.add_argument("--child", help="for its own use: one measurement in a fresh process")
    told = parser.parse_args()
    folder = measurements(told.data)
    if told.child:
        child(folder, told.child)
        return
    found = {part: PARTS[part](folder) for part in told.only}
    if told.json:
        told.json.write_text(json.dumps(found, indent=1))


def gaps(folder: Path) -> list[Row]:
    """Energy over the certified bound, free clocks, no noise."""
    rows = []
    print(f"{'':34} {'M':>3} {'ratio':>6} {'bound J':>10} {'energy J':>10} {'gap':>7} {'s':>6}")
    for name, problem in free_cases(folder):
        rows.append(gap(name, problem))
        print(
            "{name:34} {microbatches:3} {ratio:6.3f} {bound_j:10.1f} {energy_j:10.1f} "
            "{gap:7.3%} {seconds:6.2f}".format(**rows[-1]),
            flush=True,
        )
    for title, part in (("GPT-3 175B", True), ("uneven", False)):
        some = [row["gap"] for row in rows if str(row["name"]).startswith("GPT-3 175B") == part]
        print(f"{title}: mean gap {sum(some) / len(some):.3%}, worst {max(some):.3%}, all on time")
    return rows


def free_cases(folder: Path) -> Iterator[tuple[str, Problem]]:
    for gpu in BLOCKING_W:
        for microbatches in MICROBATCHES:
            for ratio in RATIOS:
                problem = gpt3(folder, gpu, microbatches, deadline_ratio=ratio)
                yield f"GPT-3 175B {gpu}", problem
    for microbatches in (12, 48):
        for ratio in RATIOS:
            yield from uneven(folder, microbatches, deadline_ratio=ratio)


def gap(name: str, problem: Problem) -> Row:
    """One case: solved, timed by the evaluator, and its bound checked again."""
    problem = replace(problem, time_budget_s=budget(problem))
    result = solve(problem, clock=time.perf_counter)
    told = evaluate(problem, result.plan)
    if told.iteration_time_s > told.deadline_s * (1 + LATE):
        raise SystemExit(f"{name}: late by {told.iteration_time_s / told.deadline_s - 1:.2e}")
    bound = proved(problem)
    return {
        "name": name,
        "microbatches": max(c.microbatch for c in problem.pipeline.orders[0]) + 1,
        "ratio": problem.deadline_ratio,
        "bound_j": bound,
        "energy_j": told.energy_j,
        "gap": told.energy_j / bound - 1,
        "seconds": result.solve_time_s,
    }


def proved(problem: Problem) -> float:
    """The bound in joules, by the checker alone: it trusts nothing that found the flow."""
    inst = Instance.of(problem)
    found, hulls = relaxed(inst), Hulls.of(problem, inst.graph)
    flow = found.edge_flow[0], found.last_flow[0]
    return inst.energy(certified_bound(inst.network, hulls, inst.tightest_s, *flow))


def budget(problem: Problem) -> float:
    size = sum(map(len, problem.pipeline.orders))
    return next(seconds for most, seconds in SIZES.items() if size <= most)


def speed(folder: Path) -> list[Row]:
    """Seconds of processor time, the least of three; memory in a process of its own."""
    rows = []
    print(f"{'':34} {'n':>6} {'ratio':>6} {'bound s':>8} {'both s':>7} {'gap':>7} {'MB':>5}")
    for gpu in BLOCKING_W:
        for size in SIZES:
            problem = gpt3(folder, gpu, size // 16, deadline_ratio=1.02)
            for ratio in (1.0, 1.02, 1.1):
                problem = replace(problem, deadline_ratio=ratio, time_budget_s=SIZES[size])
                bound_s = seconds(lambda problem=problem: lower_bound(problem))
                began = time.process_time()
                result = solve(problem, clock=time.perf_counter)
                both_s = time.process_time() - began
                row: Row = {
                    "name": f"GPT-3 175B {gpu}",
                    "computations": size,
                    "ratio": ratio,
                    "bound_s": bound_s,
                    "both_s": both_s,
                    "gap": result.energy_j / result.energy_lower_bound_j - 1,
                    "peak_mb": peak_mb(folder, gpu, size) if ratio == 1.0 else None,
                }
                rows.append(row)
                peak = "" if row["peak_mb"] is None else f"{row['peak_mb']:5.0f}"
                print(
                    f"{row['name']:34} {size:6} {ratio:6.3f} {bound_s:8.3f} {both_s:7.2f} "
                    f"{row['gap']:7.3%} {peak}",
                    flush=True,
                )
    rows += [known_frontier(folder, gpu) for gpu in BLOCKING_W]
    return rows


def known_frontier(folder: Path, gpu: str) -> Row:
    """50 deadlines asked of a frontier that is there, 2,048 computations."""
    curve = frontier(gpt3(folder, gpu, 128))
    times, gaps_found = [], []
    for k in range(50):
        at = k / 49
        deadline = curve.shortest_time_s * (1 - at) + curve.least_energy_time_s * at
        times.append(seconds(lambda deadline=deadline: curve.plan(deadline)))
        told = curve.plan(deadline)
        gaps_found.append(told.energy_j / told.energy_lower_bound_j - 1)
    row: Row = {
        "name": f"GPT-3 175B {gpu}, deadline on a known frontier",
        "computations": 2048,
        "worst_s": max(times),
        "mean_gap": sum(gaps_found) / len(gaps_found),
        "worst_gap": max(gaps_found),
    }
    print(
        f"{row['name']}: at most {row['worst_s'] * 1e3:.1f} ms, "
        f"gap {row['mean_gap']:.3%} mean, {row['worst_gap']:.3%} worst",
        flush=True,
    )
    return row


def seconds(work: Callable[[], object]) -> float:
    """Processor time, the least of three."""
    found = []
    for _ in range(3):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


def peak_mb(folder: Path, gpu: str, size: int) -> float:
    """Resident memory of a process that plans once."""
    command = [sys.executable, __file__, "--data", str(folder.parent), "--child", f"{gpu}:{size}"]
    told = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(told.stdout)


def child(folder: Path, what: str) -> None:
    gpu, size = what.split(":")
    solve(gpt3(folder, gpu, int(size) // 16, time_budget_s=SIZES[int(size)]), clock=time.monotonic)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def writes(folder: Path) -> list[Row]:
    """Saved within a budget of clock writes, and what no plan within it can exceed."""
    rows = []
    print(f"{'':34} {'M':>3} {'writes':>6} {'saved':>7} {'limit':>7} {'points':>6} {'s':>6}")
    for gpu in BLOCKING_W:
        for microbatches, most in ((12, 5), (48, 6), (96, 6)):
            problem = gpt3(folder, gpu, microbatches, max_writes=most, time_budget_s=2.3)
            result = solve(problem, clock=time.perf_counter)
            told = evaluate(problem, result.plan)
            if told.iteration_time_s > told.deadline_s * (1 + LATE):
                raise SystemExit(f"{gpu}, {microbatches} microbatches: late")
            baseline = result.baseline_energy_j
            row: Row = {
                "name": f"GPT-3 175B {gpu}",
                "microbatches": microbatches,
                "writes": most,
                "saved": 1 - told.energy_j / baseline,
                "limit": 1 - result.energy_lower_bound_writes_j / baseline,
                "seconds": result.solve_time_s,
            }
            rows.append(row)
            print(
                f"{row['name']:34} {microbatches:3} {most:6} {row['saved']:7.2%} "
                f"{row['limit']:7.2%} {(row['limit'] - row['saved']) * 100:6.2f} "
                f"{row['seconds']:6.2f}",
                flush=True,
            )
    return rows


def lowtime(folder: Path) -> list[Row]:
    """lowtime's plans at their true times beside ours by these times; then both frontiers' time."""
    try:
        import lowtime_peer
    except ImportError as error:
        raise SystemExit(f"{error}: pip install 'perseusd[bench]'") from error
    rows: list[Row] = []
    for gpu in BLOCKING_W:
        problem = gpt3(folder, gpu, 12)
        for pareto_first in (True, False):
            steps = list(lowtime_peer.walk(problem, pareto_first=pareto_first))
            rows.append(beside(f"{gpu}, 8 × 12", problem, frontier(problem), steps))
    problem = gpt3(folder, "a100_sxm", 32)
    ours_s = seconds(lambda: frontier(problem))
    gap = frontier(problem).gap
    for pareto_first in (True, False):
        began = time.process_time()
        count = sum(1 for _ in lowtime_peer.walk(problem, pareto_first=pareto_first))
        theirs_s = time.process_time() - began
        order = "Pareto points first" if pareto_first else "blocking power first"
        rows.append({"frontier": order, "ours_s": ours_s, "theirs_s": theirs_s, "gap": gap})
        print(
            f"whole frontier, 8 × 32: ours {ours_s:.2f} s, certified within {gap:.2%}; lowtime "
            f"({order}, {count} steps) {theirs_s:.0f} s: {theirs_s / ours_s:.0f} times",
            flush=True,
        )
    return rows


def beside(name: str, problem: Problem, curve: Frontier, steps: list) -> Row:
    """Ours over theirs, in joules by each of their true times."""
    inst = Instance.of(problem)
    ratios = []
    for step in steps:
        theirs = step.true_cost_j + inst.waiting_power_w * step.true_s
        ours = curve.plan(step.true_s).energy_j
        if ours > theirs:  # the frontier's quick plan is not the best there is
            tighter = replace(problem, deadline_ratio=step.true_s / inst.baseline_time_s)
            ours = solve(tighter, clock=time.perf_counter).energy_j
        ratios.append(ours / theirs)
    row: Row = {
        "name": name,
        "steps": len(steps),
        "worst": max(ratios),
        "mean": sum(ratios) / len(ratios),
    }
    print(
        f"{name}, {len(steps)} plans of lowtime at their true times: ours uses "
        f"{row['mean']:.4f} of its energy on average, {row['worst']:.4f} at most",
        flush=True,
    )
    return row


PARTS = {"gaps": gaps, "speed": speed, "writes": writes, "lowtime": lowtime}


if __name__ == "__main__":
    main()
