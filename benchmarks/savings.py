"""How often the stated 95 % interval holds the true saving, and how wide it is.

    python benchmarks/savings.py [--runs 1000] [--held 200] [--only SCENARIO …] [--jobs 2]
                                 [--closed-loop N] [--json FILE]

Each run is one job: a baseline, learning, then so many held iterations, with reference windows as
the daemon draws them, through the core's own ledger. Pipelines, noise and energy counters are
generated here, so the truth is known: what the very held iterations would have used at full clock,
computation by computation with the same noise. Scenarios say what the noise is like. `covers` is
how often the interval held the truth, `below` and `above` how often the truth lay under or over it;
`half` the median half-width and `off` the mean error in percentage points; `cost` what windows
cost of the saving.

With --closed-loop, N runs more of a small job each under the whole core in virtual time.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from perseusd.core.events.iterations import JobIteration
from perseusd.core.events.tracking import RankIteration, Span, Step
from perseusd.core.savings.ledger import Ledger
from perseusd.core.savings.reference import due
from perseusd.emulation.fasttime import Conditions, FastTime, counted
from perseusd.emulation.workloads import load_workload

Array = npt.NDArray[np.float64]
Run = Callable[[str, int, int], "Outcome"]
Drift = Callable[[np.random.Generator, int], Array]

POLL_S = 0.02
IDLE_W = 80.0
FORWARD_W, BACKWARD_W = 270.0, 310.0
SYNCHRONISATION_S = 0.004


@dataclass(frozen=True)
class Scenario:
    """What a job and its node are like.

    noise: of each computation, sigma of a lognormal factor.
    tick_s, window, late_s: of energy counters: how often they move, the share of the time that they
        see, and how late they are.
    drift: (generator, iterations) → factor − 1 on all of an iteration's durations.
    versions: chance of another plan after each held iteration, at first.
    pauses: share of iterations after which everything waits for up to a whole one (a checkpoint).
    """

    noise: float = 0.01
    tick_s: float = 0.05
    window: float = 1.0
    late_s: float = 0.0
    stages: int = 4
    microbatches: int = 6
    baseline: int = 5
    learn: int = 8
    drift: str = "none"
    versions: float = 0.05
    pauses: float = 0.0


def autoregressive(share: float, sigma: float) -> Drift:
    def draw(random: np.random.Generator, iterations: int) -> Array:
        values = random.normal(0, sigma, iterations)
        for i in range(1, iterations):
            values[i] = share * values[i - 1] + np.sqrt(1 - share**2) * values[i]
        return values

    return draw


def linear(random: np.random.Generator, iterations: int) -> Array:
    return np.linspace(0, random.choice([-0.01, 0.01]), iterations)


def walk(random: np.random.Generator, iterations: int) -> Array:
    return np.cumsum(random.normal(0, 0.0003, iterations))


def wave(random: np.random.Generator, iterations: int) -> Array:
    """A data set's period."""
    turns = np.arange(iterations) / random.uniform(20, 100) + random.uniform()
    return np.asarray(0.005 * np.sin(2 * np.pi * turns))


def warming(random: np.random.Generator, iterations: int) -> Array:
    """GPUs get warm in the first minutes and slower by 0.5 %."""
    return np.asarray(-0.005 * np.exp(-np.arange(iterations) / 20.0))


def quickening(random: np.random.Generator, iterations: int) -> Array:
    """Caches fill and kernels are tuned: faster by 1 % in the end, most of it within 40."""
    return np.asarray(0.01 * np.exp(-np.arange(iterations) / 40.0))


def settling(random: np.random.Generator, iterations: int) -> Array:
    """From 0.2 to 2 % off at first, up or down, of which e^−1 is left after 5 to 100 iterations."""
    off = random.choice([-1, 1]) * np.exp(random.uniform(np.log(0.002), np.log(0.02)))
    lasts = np.exp(random.uniform(np.log(5), np.log(100)))
    return np.asarray(off * np.exp(-np.arange(iterations) / lasts))


DRIFTS: dict[str, Drift] = {
    "none": lambda _, iterations: np.zeros(iterations),
    "ar 0.5": autoregressive(0.5, 0.003),
    "ar 0.9": autoregressive(0.9, 0.003),
    "linear": linear,
    "walk": walk,
    "wave": wave,
    "warming": warming,
    "quickening": quickening,
    "settling": settling,
}

SCENARIOS = {
    "plain": Scenario(),
    "noise 3 %": Scenario(noise=0.03),
    "tick 100 ms": Scenario(tick_s=0.1),
    "seen 25 %": Scenario(tick_s=0.1, window=0.25),
    "seen 25 %, noise 3 %": Scenario(noise=0.03, tick_s=0.1, window=0.25),
    "seen 25 %, late": Scenario(tick_s=0.1, window=0.25, late_s=0.06),
    "one plan": Scenario(versions=0.0),
    "ar 0.5": Scenario(drift="ar 0.5"),
    "ar 0.9": Scenario(drift="ar 0.9"),
    "linear": Scenario(drift="linear"),
    "walk": Scenario(drift="walk"),
    "wave": Scenario(drift="wave"),
    "warming": Scenario(drift="warming"),
    "quickening": Scenario(drift="quickening"),
    "settling": Scenario(drift="settling"),
    "pauses": Scenario(pauses=0.02),
}


CLOSED_LOOP = {
    "closed loop": Conditions(),
    "closed loop, seen 25 %": Conditions(counter_tick_s=0.1, counter_window=0.25),
}


class Outcome(NamedTuple):
    """One run: shares of 1."""

    scenario: str
    true_saving: float
    saving: tuple[float, float, float]
    true_slowdown: float
    slowdown: tuple[float, float, float]
    true_saved_j: float
    saved_j: tuple[float, float, float]
    references: int
    cost: float


@dataclass(frozen=True)
class Course:
    """What each iteration is: its phase, and for each stage its clock's time and power factors."""

    phases: list[str]
    slower: Array
    weaker: Array


def course(scenario: Scenario, held: int, seed: int, random: np.random.Generator) -> Course:
    """Until so many iterations were held."""
    phases = ["baseline"] * scenario.baseline + ["learn"] * scenario.learn
    factors = [(full(scenario), full(scenario))] * scenario.baseline
    factors += [plan(scenario, random) for _ in range(scenario.learn)]
    now, count, pending = plan(scenario, random), 0, ""
    while count < held:
        pending, phase = "", pending or "hold"
        phases.append(phase)
        factors.append((full(scenario), full(scenario)) if phase == "reference" else now)
        if phase != "hold":
            continue
        count += 1
        if random.random() < scenario.versions * np.exp(-count / 40):
            now, pending = plan(scenario, random), "change"
        elif due(seed, count):
            pending = "reference"
    slower, weaker = zip(*factors, strict=True)
    return Course([*phases, "end"], np.array(slower), np.array(weaker))


def full(scenario: Scenario) -> Array:
    return np.ones(scenario.stages)


def plan(scenario: Scenario, random: np.random.Generator) -> tuple[Array, Array]:
    """Stage 0 is the longest; the lighter a stage, the slower it may be."""
    slower = 1 + slack(scenario) * random.uniform(0.5, 0.7) * (np.arange(scenario.stages) > 0)
    return slower, slower**-2.7


def slack(scenario: Scenario) -> Array:
    return 0.1 * np.arange(scenario.stages)


def durations(scenario: Scenario, iterations: int, random: np.random.Generator) -> Array:
    """Shape (iterations, stages, computations) s, at full clock."""
    count = 2 * scenario.microbatches
    base = 0.04 / (1 + slack(scenario))[:, None] * np.array([1.0, 2.0] * scenario.microbatches)
    shape = (iterations, scenario.stages, count)
    noisy = base * np.exp(random.normal(0, scenario.noise, shape))
    noisy *= np.exp(DRIFTS[scenario.drift](random, iterations))[:, None, None]
    return noisy


def pauses(scenario: Scenario, iterations: int, random: np.random.Generator) -> Array:
    """Shape (iterations,) s, between an iteration's end and the next one's start."""
    paused = random.random(iterations) < scenario.pauses
    return np.where(paused, random.uniform(0.2, 0.8, iterations), 0.0)


def order(scenario: Scenario, stage: int) -> list[tuple[bool, int]]:
    """1F1B: (whether forward, microbatch) of each computation, in order."""
    warm = min(scenario.stages - stage - 1, scenario.microbatches)
    steps = [(True, m) for m in range(warm)]
    for m in range(scenario.microbatches - warm):
        steps += [(True, warm + m), (False, m)]
    return steps + [(False, m) for m in range(scenario.microbatches - warm, scenario.microbatches)]


class Timetable(NamedTuple):
    """Shapes (iterations, stages, computations), in execution order; s after the iteration's start.
    length_s: (iterations,)."""

    start_s: Array
    end_s: Array
    length_s: Array


def timetable(scenario: Scenario, seconds: Array, paused: Array) -> Timetable:
    """seconds: (iterations, stages, 2 microbatches): forward and backward of each microbatch."""
    orders = [order(scenario, s) for s in range(scenario.stages)]
    start, end = np.zeros(seconds.shape), np.zeros(seconds.shape)
    done: dict[tuple[int, bool, int], Array] = {}
    free = [np.zeros(len(seconds)) for _ in orders]
    at = [0] * scenario.stages
    while any(at[s] < len(orders[s]) for s in range(scenario.stages)):
        for s, steps in enumerate(orders):
            while at[s] < len(steps):
                forward, m = steps[at[s]]
                needed = _needed(scenario, s, forward, m)
                if needed is not None and needed not in done:
                    break
                begin = free[s] if needed is None else np.maximum(free[s], done[needed])
                start[:, s, at[s]] = begin
                free[s] = begin + seconds[:, s, 2 * m + (not forward)]
                end[:, s, at[s]] = done[s, forward, m] = free[s]
                at[s] += 1
    return Timetable(start, end, end.max(axis=(1, 2)) + SYNCHRONISATION_S + paused)


def _needed(scenario: Scenario, s: int, forward: bool, m: int) -> tuple[int, bool, int] | None:
    if forward:
        return (s - 1, True, m) if s else None
    return (s, True, m) if s == scenario.stages - 1 else (s + 1, False, m)


def watts(scenario: Scenario, weaker: Array) -> Array:
    """Shape (iterations, stages, computations): above idle, in execution order."""
    kinds = [
        [FORWARD_W if forward else BACKWARD_W for forward, _ in order(scenario, s)]
        for s in range(scenario.stages)
    ]
    return np.asarray(np.array(kinds) * weaker[:, :, None] - IDLE_W)


def energies(scenario: Scenario, table: Timetable, weaker: Array) -> Array:
    """Shape (iterations,) J, of all stages."""
    above = (table.end_s - table.start_s) * watts(scenario, weaker)
    return np.asarray(above.sum(axis=(1, 2)) + table.length_s * IDLE_W * scenario.stages)


def run(name: str, held: int, seed: int) -> Outcome:
    """One job from its start, through the core."""
    scenario = SCENARIOS[name]
    random = np.random.default_rng([zlib.crc32(name.encode()), seed])
    steps = course(scenario, held, seed, random)
    last = steps.slower.shape[0] - 1
    slower = np.vstack([steps.slower, steps.slower[last:]])
    weaker = np.vstack([steps.weaker, steps.weaker[last:]])
    at_full = durations(scenario, len(slower), random)
    paused = pauses(scenario, len(slower), random)
    table = timetable(scenario, at_full * slower[:, :, None], paused)
    shadow = timetable(scenario, at_full, paused)
    ledger = live(scenario, steps.phases, table, weaker, random)
    used_j, full_j = energies(scenario, table, weaker), energies(scenario, shadow, 0 * weaker + 1)
    truth = Truth(steps.phases, used_j, full_j, table.length_s, shadow.length_s)
    return outcome(name, ledger, truth)


class Truth(NamedTuple):
    """By iteration: its phase, J and s as it was, and at full clock."""

    phases: Sequence[str]
    used_j: Array
    full_j: Array
    length_s: Array
    full_s: Array


def outcome(name: str, ledger: Ledger, truth: Truth) -> Outcome:
    savings = ledger.savings()
    assert savings.saving is not None
    assert savings.slowdown is not None
    assert savings.energy_saved_j is not None
    held = np.array([p == "hold" for p in truth.phases])
    paid = np.array([p in ("hold", "learn", "change") for p in truth.phases])
    return Outcome(
        name,
        1 - truth.used_j[held].sum() / truth.full_j[held].sum(),
        savings.saving,
        truth.length_s[held].sum() / truth.full_s[held].sum() - 1,
        savings.slowdown,
        float((truth.full_j - truth.used_j)[paid].sum()),
        savings.energy_saved_j,
        savings.references,
        savings.reference_cost or 0.0,
    )


def closed_loop(name: str, held: int, seed: int) -> Outcome:
    """A job of four stages, in which everything is the core's own doing."""
    workload = load_workload("bert-1.3b", "a100-pcie")
    conditions = replace(CLOSED_LOOP[name], seed=seed)
    training = FastTime(workload, counted, conditions, microbatches=8)
    phases: dict[int, str] = {}

    def look() -> None:
        jobs = training.controller.jobs
        if jobs and (last := training.job.ledger.last) is not None:
            phases[last.number] = last.phase

    iterations = held + 25
    for number in range(iterations):
        training.before(number, look)
    done = training.run(iterations)
    look()
    truth = Truth(
        [phases.get(i.told, "") for i in done],
        np.array([i.energy_j for i in done]),
        np.array([i.full_energy_j for i in done]),
        np.array([i.time_s for i in done]),
        np.array([i.full_time_s for i in done]),
    )
    return outcome(name, training.job.ledger, truth)


def live(
    scenario: Scenario,
    phases: Sequence[str],
    table: Timetable,
    weaker: Array,
    random: np.random.Generator,
) -> Ledger:
    """Tell the ledger all of it, in order."""
    ledger = Ledger()
    begins = 1.0 + np.concatenate([[0.0], np.cumsum(table.length_s)[:-1]])
    gpus = [[f"GPU-{s}"] for s in range(scenario.stages)]
    polls = [counter(scenario, begins, table, weaker, s, random) for s in range(scenario.stages)]
    steps = [
        [Step(0, "forward" if forward else "backward", m) for forward, m in order(scenario, s)]
        for s in range(scenario.stages)
    ]
    starts_ns = np.round((table.start_s + begins[:, None, None]) * 1e9).astype(int).tolist()
    ends_ns = np.round((table.end_s + begins[:, None, None]) * 1e9).astype(int).tolist()
    told = [0] * scenario.stages
    for number, phase in enumerate(phases):
        now_ns = max(ends_ns[number][s][-1] for s in range(scenario.stages))
        for s, (at_ns, joules) in enumerate(polls):
            until = int(np.searchsorted(at_ns, now_ns))
            for t, j in zip(
                at_ns[told[s] : until].tolist(), joules[told[s] : until].tolist(), strict=True
            ):
                ledger.poll(f"GPU-{s}", t, j)
            told[s] = until
        ranks = tuple(
            RankIteration(
                number,
                tuple(
                    Span(*span)
                    for span in zip(steps[s], starts_ns[number][s], ends_ns[number][s], strict=True)
                ),
            )
            for s in range(scenario.stages)
        )
        ledger.iteration(JobIteration(number, ranks), phase, gpus)
    return ledger


def counter(
    scenario: Scenario,
    begins: Array,
    table: Timetable,
    weaker: Array,
    stage: int,
    random: np.random.Generator,
) -> tuple[npt.NDArray[np.int64], Array]:
    """Times (ns) and values of the polls around each tick of one GPU's counter."""
    starts = (table.start_s[:, stage] + begins[:, None]).ravel()
    ends = (table.end_s[:, stage] + begins[:, None]).ravel()
    above_w = watts(scenario, weaker)[:, stage].ravel()
    edges = np.column_stack([starts, ends]).ravel()
    above = np.column_stack([np.zeros(len(starts)), (ends - starts) * above_w]).ravel()
    spent = np.cumsum(above)
    tick = scenario.tick_s
    ticks = random.uniform(0, tick) + tick * np.arange(int(edges[-1] / tick))
    seen = np.interp(ticks, edges, spent) - np.interp(ticks - scenario.window * tick, edges, spent)
    joules = np.cumsum(seen / scenario.window + IDLE_W * tick)
    shown = ticks + scenario.late_s
    after = np.ceil((shown + 1e-9) / POLL_S) * POLL_S
    times = np.column_stack([after - POLL_S, after]).ravel()
    values = np.column_stack([joules - np.diff(joules, prepend=0.0), joules]).ravel()
    return np.round(times * 1e9).astype(np.int64), values


def main() -> None:
    given = arguments()
    outcomes: list[Outcome] = []
    names = given.only or list(SCENARIOS)
    print(
        f"{'scenario':22} {'runs':>5} {'saving':>7} {'covers':>7} {'below':>6} {'above':>6} "
        f"{'half':>6} {'off':>7} | {'slowdown':>8} {'covers':>7} {'half':>6} | {'saved J':>7} | "
        f"{'cost':>6}"
    )
    work: list[tuple[str, Run, int]] = [
        (name, run, max(1, given.runs // len(names))) for name in names if given.runs
    ]
    work += [(name, closed_loop, given.closed_loop // 2) for name in CLOSED_LOOP]
    for name, call, runs in work:
        if runs:
            found = list(
                in_parallel(call, [(name, given.held, s) for s in range(runs)], given.jobs)
            )
            outcomes += found
            print(line(name, found), flush=True)
    if len({o.scenario for o in outcomes}) > 1:
        print(line("all", outcomes))
    if given.json is not None:
        given.json.write_text(json.dumps([o._asdict() for o in outcomes]))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=1000, help="of all scenarios together")
    parser.add_argument("--held", type=int, default=200, help="iterations of hold")
    parser.add_argument("--only", nargs="*", metavar="SCENARIO", choices=list(SCENARIOS))
    parser.add_argument("--closed-loop", type=int, default=0, metavar="N")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also keep the outcomes there")
    return parser.parse_args()


def in_parallel(call: Run, cases: Sequence[tuple[str, int, int]], jobs: int) -> Iterator[Outcome]:
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(call, *zip(*cases, strict=True), chunksize=2)


def line(name: str, outcomes: Sequence[Outcome]) -> str:
    saving = np.array([(o.true_saving, *o.saving) for o in outcomes])
    slowdown = np.array([(o.true_slowdown, *o.slowdown) for o in outcomes])
    saved = np.array([(o.true_saved_j, *o.saved_j) for o in outcomes])
    return (
        f"{name:22} {len(outcomes):5} {saving[:, 0].mean():7.2%} {covers(saving):7.1%} "
        f"{np.mean(saving[:, 0] < saving[:, 2]):6.1%} {np.mean(saving[:, 0] > saving[:, 3]):6.1%} "
        f"{half(saving):6.3f} {100 * np.mean(saving[:, 1] - saving[:, 0]):+7.3f} | "
        f"{slowdown[:, 0].mean():8.3%} {covers(slowdown):7.1%} {half(slowdown):6.3f} | "
        f"{covers(saved):7.1%} | {np.mean([o.cost for o in outcomes]):6.2%}"
    )


def covers(of: Array) -> float:
    return float(np.mean((of[:, 2] <= of[:, 0]) & (of[:, 0] <= of[:, 3])))


def half(of: Array) -> float:
    """Percentage points."""
    return 50 * float(np.median(of[:, 3] - of[:, 2]))


if __name__ == "__main__":
    main()
