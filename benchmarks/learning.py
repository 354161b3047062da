"""How well and how fast the daemon learns jobs it was told nothing about, in virtual time.

    python benchmarks/learning.py [--random N] [--seeds K] [--noise F] [--tick S] [--window F]
        [--late S] [--iterations N] [--only NAME@GPU ...] [--jobs 2] [--json FILE]

Every named workload and N drawn at random run under the daemon's core. Each row is one run: after
how many iterations the job was held, how much slower iterations were meanwhile, how far learned
curves are from the true ones at the clocks that plans use, and what was saved against what full
clocks would have used for the very same iterations. `bound` is what no plans with the same clock
changes could exceed on the true curves, in full clocks' own time and without noise; `share as run`
compares with the same bound in the time that held iterations really took.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from perseusd.core.model import Computation, Kind, Plan
from perseusd.emulation.demo import bounds_of
from perseusd.emulation.fasttime import Conditions, FastIteration, FastTime, counted
from perseusd.emulation.random_workloads import random_workload
from perseusd.emulation.workloads import Workload, load_workload, names

HEADER = (
    "workload", "GPU", "seed", "stages × mb", "iteration s", "held after", "learning slower %",
    "time off % (mean, worst)", "energy off % (mean, worst)", "saved %", "slower %", "bound %",
    "share %", "share as run %", "left hold", "CPU s",
)  # fmt: skip
MOST_BOUNDS = 4
"""Plans, the most used of a run, whose bounds are averaged."""
SETTLING = 3
"""Iterations after a job was first held that are not counted as hold: the plan gets adopted."""


@dataclass(frozen=True)
class Case:
    """One run to do. workload: a name and a GPU, or a seed of a random one."""

    workload: tuple[str, str] | int
    seed: int
    noise: float
    tick_s: float
    window: float
    late_s: float
    iterations: int
    delivery_s: float = 0.0

    def load(self) -> Workload:
        if isinstance(self.workload, int):
            return random_workload(self.workload)
        return load_workload(*self.workload)


@dataclass(frozen=True)
class Row:
    """What one run showed; shares of 1, None where the job never got as far.

    learned: iterations from the job's first one until the first that was held.
    learning_slowdown: of those in which clocks were tried, together.
    time_off, energy_off: (mean, worst) relative error of learned curves at the clocks of plans.
    left_hold: iterations after the first held one in any other state.
    """

    name: str
    gpu: str
    seed: int
    shape: str
    iteration_time_s: float
    learned: int | None
    learning_slowdown: float | None
    time_off: tuple[float, float] | None
    energy_off: tuple[float, float] | None
    saving: float | None
    slowdown: float | None
    bound: float | None
    bound_as_run: float | None
    left_hold: int
    cpu_s: float

    @property
    def share(self) -> float | None:
        return self._share(self.bound)

    @property
    def share_as_run(self) -> float | None:
        return self._share(self.bound_as_run)

    def _share(self, bound: float | None) -> float | None:
        return None if not bound or self.saving is None else self.saving / bound


def main() -> int:
    given = arguments()
    rows = []
    print("| " + " | ".join(HEADER) + " |")
    print("|" + "---|" * len(HEADER), flush=True)
    for row in in_parallel(list(cases(given)), given.jobs):
        rows.append(row)
        print(line(row), flush=True)
    print("\n".join(["", *summary(rows)]))
    if given.json is not None:
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--random", type=int, default=0, help="workloads drawn at random")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each workload")
    parser.add_argument("--noise", type=float, default=0.01)
    parser.add_argument("--tick", type=float, default=0.05, help="of energy counters, s")
    parser.add_argument("--window", type=float, default=1.0, help="share of a tick they see")
    parser.add_argument("--late", type=float, default=0.0, help="of what they show, s")
    parser.add_argument(
        "--delivery",
        type=float,
        default=0.0,
        help="of events after their stamps, as CUDA's come, s",
    )
    parser.add_argument("--iterations", type=int, default=80)
    parser.add_argument("--only", nargs="*", metavar="NAME@GPU", help="of the named ones; or none")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also keep the rows there")
    return parser.parse_args()


def cases(given: argparse.Namespace) -> Iterator[Case]:
    named: Iterable[tuple[str, str]] = names()
    if given.only is not None:
        named = [(name, gpu) for name, _, gpu in (word.partition("@") for word in given.only)]
    for workload in [*named, *range(given.random)]:
        for seed in range(given.seeds):
            sensor = given.tick, given.window, given.late
            yield Case(workload, seed, given.noise, *sensor, given.iterations, given.delivery)


def in_parallel(todo: Sequence[Case], jobs: int) -> Iterator[Row]:
    if jobs <= 1:
        yield from map(run, todo)
        return
    for pool_of_threads in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(pool_of_threads, "1")  # each process has one core
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(run, todo)


def run(case: Case) -> Row:
    started_s = time.process_time()
    workload = case.load()
    emulated = FastTime(workload, counted, conditions(case))
    plans = planned(emulated, case.iterations)
    done = emulated.run(case.iterations)
    learned = next((i.number for i in done if i.state == "hold"), None)
    learning = [i for i in done if i.state == "learn" and (learned is None or i.number < learned)]
    hold = [i for i in done if learned is not None and i.number >= learned + SETTLING]
    held = [i for i in hold if i.state == "hold"]
    used = Counter(plan for i in held if (plan := plans.get(i.number)) is not None)
    errors = curve_errors(emulated, used) if used else None
    return Row(
        name=workload.name,
        gpu=workload.gpu,
        seed=case.seed,
        shape=f"{workload.stages} × {workload.microbatches}",
        iteration_time_s=statistics.fmean(i.time_s for i in done[1:6]),
        learned=learned,
        learning_slowdown=slowdown(learning),
        time_off=errors and errors[0],
        energy_off=errors and errors[1],
        saving=saving(held),
        slowdown=slowdown(held),
        bound=bound(workload, used, 0.0),
        bound_as_run=bound(workload, used, max(0.0, slowdown(held) or 0.0)),
        left_hold=sum(i.state != "hold" for i in hold),
        cpu_s=time.process_time() - started_s,
    )


def conditions(case: Case) -> Conditions:
    return Conditions(
        noise=case.noise,
        seed=case.seed,
        counter_tick_s=case.tick_s,
        counter_window=case.window,
        counter_late_s=case.late_s,
        delivery_s=case.delivery_s,
    )


def slowdown(of: Sequence[FastIteration]) -> float | None:
    full_s = sum(i.full_time_s for i in of)
    return sum(i.time_s for i in of) / full_s - 1 if of else None


def saving(of: Sequence[FastIteration]) -> float | None:
    full_j = sum(i.full_energy_j for i in of)
    return 1 - sum(i.energy_j for i in of) / full_j if of else None


def bound(workload: Workload, plans: Counter[Plan], slower: float) -> float | None:
    """The most that plans of these clock changes save on the true curves in so much more time: the
    mean over the plans by the iterations that they ran."""
    total, iterations = 0.0, 0
    for plan, count in plans.most_common(MOST_BOUNDS):
        found = bounds_of(workload, workload.microbatches, plan, slower).saving_writes
        total, iterations = total + count * (found or 0.0), iterations + count
    return total / iterations if iterations else None


def planned(emulated: FastTime, iterations: int) -> Mapping[int, Plan]:
    """By iteration, the plan under which it ran; filled in while the job runs."""
    plans: dict[int, Plan] = {}

    def note(ended: int) -> None:
        job = emulated.job_of(0)
        paced = None if job is None else job.plan_in_force
        if paced is not None:
            plans[ended] = paced.plan

    for iteration in range(1, iterations + 1):
        emulated.before(iteration, partial(note, iteration - 1))
    return plans


def curve_errors(
    emulated: FastTime, plans: Iterable[Plan]
) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """(mean, worst) relative error of times, and of energies, over all that the plans use."""
    workload, known = emulated.workload, emulated.job._known
    if known is None:
        return None
    learned, _ = known.knowledge.curves(known.graph.kinds)
    times, energies = [], []
    for kind, clock_mhz in sorted(clocks_of(known.pipeline.orders, plans, workload.clocks_mhz[-1])):
        truth = workload.curves[kind.rank, kind.instruction]
        index, curve = workload.clocks_mhz.index(clock_mhz), learned[kind]
        time_s = float(np.interp(clock_mhz, curve.clock_mhz, curve.time_s))
        energy_j = float(np.interp(clock_mhz, curve.clock_mhz, curve.energy_j))
        times.append(abs(time_s / truth.time_s[index] - 1))
        energies.append(abs(energy_j / truth.energy_j[index] - 1))
    return (statistics.fmean(times), max(times)), (statistics.fmean(energies), max(energies))


def clocks_of(
    orders: Sequence[Sequence[Computation]], plans: Iterable[Plan], top_mhz: int
) -> set[tuple[Kind, int]]:
    return {
        (computation.kind, clock if clock is not None else top_mhz)
        for plan in plans
        for order, clocks in zip(orders, plan.clocks, strict=True)
        for computation, clock in zip(order, clocks, strict=True)
    }


def line(row: Row) -> str:
    cells = [
        row.name, row.gpu, str(row.seed), row.shape, f"{row.iteration_time_s:.2f}",
        "–" if row.learned is None else str(row.learned), percent(row.learning_slowdown, 2),
        pair(row.time_off), pair(row.energy_off), percent(row.saving, 2),
        percent(row.slowdown, 2), percent(row.bound, 2), percent(row.share),
        percent(row.share_as_run), str(row.left_hold), f"{row.cpu_s:.1f}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"


def pair(values: tuple[float, float] | None) -> str:
    return "–" if values is None else ", ".join(percent(v) for v in values)


def summary(rows: Sequence[Row]) -> Iterator[str]:
    """Each target, and how many runs met it, with the worst of them."""
    limits = {
        "held after ≤ 20 iterations": ([r.learned for r in rows], 20, 1),
        "learning slower ≤ 1 %": ([r.learning_slowdown for r in rows], 0.01, 1),
        "times off ≤ 3 % at worst": ([r.time_off and r.time_off[1] for r in rows], 0.03, 1),
        "energies off ≤ 5 % at worst": ([r.energy_off and r.energy_off[1] for r in rows], 0.05, 1),
        "share of the bound ≥ 85 %": ([r.share for r in rows], 0.85, -1),
        "slower in hold ≤ 0.5 %": ([r.slowdown for r in rows], 0.005, 1),
        "hold never left": ([r.left_hold for r in rows], 0, 1),
    }
    for name, (values, limit, sign) in limits.items():
        known = [v for v in values if v is not None]
        met = sum(sign * v <= sign * limit for v in known)
        if known:
            worst = max(known, key=lambda v: sign * v)
            yield (
                f"{name}: {met} of {len(rows)}; median {statistics.median(known):.4g}, "
                f"worst {worst:.4g}"
            )


if __name__ == "__main__":
    raise SystemExit(main())
