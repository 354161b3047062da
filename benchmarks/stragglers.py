"""How well stragglers are found: a thousand seeded cases, NVIDIA's own cases, and real runs.

    python benchmarks/stragglers.py [--cases N] [--seed S] [--data FOLDER] [--only PART]

The seeded cases go through `Watch` in virtual time: 1–4 replicas of 1–8 stages with 4–16
microbatches, noise of 0.5–3 % per computation, half of them with sequence lengths that vary by
5–30 %; a slow rank, a slow link or a slow replica of 1.05–3×, sudden or in a ramp of 10–60
iterations, transient or lasting, or none at all. In half of the cases without a straggler or with
one of 1.2× or more, full-clock equivalents err by up to 3 % per rank, anew every 20 iterations.
Cases in which no detector could tell (see `Case.knowable`) are counted apart. "Wrong" is any report
of anybody else, or before the onset.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import log, sqrt
from pathlib import Path

import numpy as np

from perseusd.core.model import Computation
from perseusd.core.stragglers import Observation, Straggler, Watch

FACTORS = (1.05, 1.07, 1.1, 1.15, 1.2, 1.3, 1.5, 2.0, 3.0)
OWN_ERROR = 0.03
"""Excess that may be the error of the full-clock equivalents, and must never be reported."""

NEEDED_SIGMA = 7.0
"""What even a detector that knows every distribution needs: about 4 against false alarms in the
thousands of tests of a run, and 3 against a miss."""


@dataclass(frozen=True)
class Case:
    seed: int
    replicas: int
    stages: int
    microbatches: int
    noise: float
    lengths: float
    what: str
    """none, rank, link or replica."""
    factor: float
    replica: int
    stage: int
    onset: int
    ramp: int
    lasts: int
    iterations: int
    bias: float
    """Largest error of the full-clock equivalents, by rank, drawn anew at each change of plan."""

    def excess(self, iteration: int) -> float:
        """Factor that iteration, less 1."""
        since = iteration - self.onset
        if self.what == "none" or since < 0 or since >= self.lasts:
            return 0.0
        return (self.factor - 1) * min((since + 1) / (self.ramp + 1), 1.0)

    def reaches(self, factor: float) -> int:
        """The first iteration with that factor, or the full one where it is smaller."""
        goal = min(factor, self.factor) - 1 - 1e-9
        return next(i for i in range(self.onset, self.iterations) if self.excess(i) >= goal)

    def sigma(self) -> float:
        """Standard deviation of one iteration's best estimate of log factor, all known but it."""
        own = self.noise**2 / (2 * self.microbatches)
        length = self.lengths**2 / self.microbatches
        if self.what == "replica" or self.stages == 1:
            return sqrt(length + own / self.stages)
        if self.what == "link":
            return 0.0
        others = own / (self.stages - 1)
        common = 1 / (1 / others + (1 / length if length else np.inf))
        return sqrt(own + common)

    def knowable(self, iterations: int, factor: float | None = None) -> bool:
        """Whether that many iterations at that (or the full) factor can tell at all.

        They are compared with as many healthy ones as came before the onset, and 3 % may be the
        error of the full-clock equivalents.
        """
        error = self.sigma() * sqrt(1 / iterations + 1 / self.onset)
        return log(factor or self.factor) - OWN_ERROR >= NEEDED_SIGMA * error

    def knowable_at_once(self) -> bool:
        """Whether three iterations tell, in a ramp those from 1.2× on."""
        return self.knowable(3, 1.2 if self.ramp else None)

    def knowable_at_all(self) -> bool:
        return self.knowable(self.lasts - self.ramp)


def draw(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    replicas, stages = int(rng.integers(1, 5)), int(rng.integers(1, 9))
    kinds = ["none", "rank", "rank", "rank", "replica"] + (["link"] if stages > 1 else [])
    what = str(rng.choice(kinds))
    transient = what != "none" and bool(rng.random() < 0.2)
    ramp = (
        int(rng.integers(10, 61)) if what != "none" and not transient and rng.random() < 0.4 else 0
    )
    factor = 1.0 if what == "none" else float(rng.choice(FACTORS))
    onset = int(rng.integers(10, 60))
    ends = transient or rng.random() < 0.5
    lasts = int(rng.integers(3, 6)) if transient else ramp + int(rng.integers(30, 70))
    return Case(
        seed, replicas, stages, int(rng.integers(4, 17)),
        float(rng.uniform(0.005, 0.03)),
        float(rng.uniform(0.05, 0.3)) if rng.random() < 0.5 else 0.0,
        what,
        factor,
        int(rng.integers(replicas)), int(rng.integers(stages - (what == "link"))),
        onset, ramp, lasts, onset + lasts + (20 if ends else 0),
        float(rng.choice([0.0, 0.03])) if factor < 1.1 or factor >= 1.2 else 0.0,
    )  # fmt: skip


def observations(case: Case) -> Iterator[Observation]:
    """All replicas' iterations, the replicas in another order each time."""
    rng = np.random.default_rng((case.seed, 1))
    forward = np.exp(rng.normal(0, 0.15, case.stages)) * 0.01
    base = np.stack([forward, forward * rng.uniform(1.7, 2.3, case.stages)])
    own = np.exp(rng.normal(0, 0.01, (case.replicas, case.stages)))
    names = [
        Computation(s, 0, instruction, m)
        for s in range(case.stages)
        for instruction in ("forward", "backward")
        for m in range(case.microbatches)
    ]
    lag = 0.05 * float(base.mean())
    total = float(base.sum(axis=0).mean()) * (case.microbatches + case.stages - 1)
    bias = np.zeros((case.replicas, case.stages))
    for iteration in range(case.iterations):
        if iteration >= 20 and iteration % 20 == 0:
            shape = (case.replicas, case.stages)
            bias = case.bias * rng.choice([-1, 0, 1], shape) * rng.random(shape)
        for replica in rng.permutation(case.replicas):
            slow = np.ones(case.stages)
            excess = case.excess(iteration) if replica == case.replica else 0.0
            if case.what == "rank":
                slow[case.stage] += excess
            elif case.what == "replica":
                slow += excess
            length = np.exp(rng.normal(0, case.lengths, case.microbatches))
            mean = base.T[:, :, None] * (own[replica] * slow * np.exp(bias[replica]))[:, None, None]
            noisy = (
                mean * length * np.exp(rng.normal(0, case.noise, (*mean.shape[:2], len(length))))
            )
            lags = {}
            for s in range(case.stages - 1):
                grown = excess * total / case.microbatches / 2
                grown = grown if case.what == "link" and s == case.stage else 0.0
                for link in ((s, s + 1, "forward"), (s + 1, s, "backward")):
                    lags[link] = float((lag + grown) * np.exp(rng.normal(0, 2 * case.noise)))
            yield Observation(
                int(replica),
                iteration,
                list(zip(names, noisy.ravel().tolist(), strict=True)),
                lags,
                total * float(np.exp(rng.normal(0, case.noise))) * (1 + excess),
            )


@dataclass(frozen=True)
class Outcome:
    case: Case
    detected: int | None
    """The iteration in which the slow one was reported."""
    ended: int | None
    """The iteration in which its end was reported."""
    wrong: tuple[Straggler, ...]
    """Reports of anybody else, or before the onset, or anew after the end."""

    @property
    def delay(self) -> int | None:
        """Iterations from 1.2× (or the full factor) to the report, both included."""
        if self.detected is None:
            return None
        return self.detected - self.case.reaches(1.2) + 1


def run(case: Case) -> Outcome:
    watch = Watch()
    detected: int | None = None
    ended: int | None = None
    wrong: list[Straggler] = []
    for observation in observations(case):
        for told in watch.observe(observation):
            right = is_right(case, told) and observation.number >= case.onset
            right = right and told.since_iteration < case.onset + case.lasts
            if not right:
                wrong.append(told)
            elif detected is None:
                detected = observation.number
            if right and told.until_iteration is not None:
                ended = observation.number
    return Outcome(case, detected, ended, tuple(wrong))


def is_right(case: Case, told: Straggler) -> bool:
    if case.what == "none" or told.replica != case.replica:
        return False
    if case.what == "link":
        return told.rank == case.stage and told.cause == "communication"
    if told.cause == "communication":
        return False
    return told.rank == (None if case.what == "replica" and case.stages > 1 else case.stage)


def seeded(count: int, seed: int, verbose: bool) -> bool:
    outcomes = [run(draw(seed * 100_000 + i)) for i in range(count)]
    print(f"\n{count} seeded cases (seed {seed})")
    print("factor   cases  missed  wrong |  knowable  missed  wrong | in 3: knowable  late")
    good = True
    for factor in (1.0, *FACTORS):
        own = [o for o in outcomes if o.case.factor == factor]
        missed = [o for o in own if factor > 1 and o.detected is None]
        wrong = [o for o in own if o.wrong]
        clear = [o for o in own if factor == 1 or o.case.knowable_at_all()]
        quick = [o for o in own if factor >= 1.2 and o.case.knowable_at_once()]
        late = [o for o in quick if o.delay is None or o.delay > 3]
        clear_missed = [o for o in clear if o in missed]
        clear_wrong = [o for o in clear if o in wrong]
        print(
            f"{factor:6.2f} {len(own):7} {len(missed):7} {len(wrong):6} | {len(clear):9}"
            f" {len(clear_missed):7} {len(clear_wrong):6} | {len(quick):14} {len(late):5}"
        )
        if factor == 1 or factor >= 1.1:
            good &= not (clear_missed or wrong or late)
        if verbose:
            for o in own:
                if (o in missed and factor >= 1.1) or o in wrong or o in late:
                    kind = "MISS " if o in missed else "WRONG" if o in wrong else "LATE "
                    print(
                        "   ",
                        kind,
                        "clear" if o in clear else "dark ",
                        o.delay,
                        o.case,
                        o.wrong[:2],
                    )
    _print_delays(outcomes)
    return good


def _print_delays(outcomes: Sequence[Outcome]) -> None:
    delays: dict[str, list[int]] = defaultdict(list)
    for o in outcomes:
        if o.delay is not None and o.case.factor >= 1.2:
            onset = "slow onset" if o.case.ramp else "sudden"
            delays[f"{o.case.what}, {onset}"].append(o.delay)
        ended = o.case.onset + o.case.lasts
        if o.detected is not None and ended < o.case.iterations and o.case.factor >= 1.1:
            delays["end noticed"].append((o.ended or o.case.iterations) - ended + 1)
    print("iterations to the report, ≥1.2×    cases  median  90 %  worst")
    for name, values in sorted(delays.items()):
        ninety = float(np.quantile(values, 0.9))
        print(f"  {name:32} {len(values):6} {np.median(values):6.0f} {ninety:6.0f} {max(values):6}")


def nvidia(seed: int, repeats: int) -> bool:
    """NVIDIA resiliency extension's section tests: 4 ranks, 3 sections, a hundred iterations.

    Sections take N(10, 3) ms, a straggler's N(15, 3); "later" ones from the second half on. Their
    sleep is a computation here, their rank a replica of one stage.
    """
    scenarios: list[tuple[str, list[tuple[int, int]]]] = [
        (when, slow)
        for when in ("always", "later")
        for slow in ([(0, 0)], [(0, 0), (0, 1)], [(0, 0), (1, 1)], [])
    ]
    all_right = True
    print(f"\nNVIDIA's eight scenarios, its own draws and {repeats} seeds each")
    for when, slow in scenarios:
        own = _nvidia_one((0, 0), when, slow)
        all_right &= own
        passed = sum(_nvidia_one((seed, i + 1), when, slow) for i in range(repeats))
        verdict = "right" if own else "WRONG"
        print(f"  {when:6} slow (section, rank) {slow!s:18} {verdict}, {passed} of {repeats} seeds")
    return all_right


def _nvidia_one(seed: tuple[int, int], when: str, slow: list[tuple[int, int]]) -> bool:
    """Seed 0 draws what NVIDIA's test draws: each rank's generator is seeded with its number."""
    draws = [random.Random(rank if seed == (0, 0) else str((seed, rank))) for rank in range(4)]
    watch = Watch()
    for iteration in range(100):
        for rank in range(4):
            computations = []
            for section in range(3):
                late = (section, rank) in slow and (when == "always" or iteration > 50)
                seconds = max(draws[rank].gauss(0.015 if late else 0.010, 0.003), 0.0001)
                computations.append((Computation(0, section, "forward", 0), seconds))
            watch.observe(Observation(rank, iteration, computations))
    return {s.replica for s in watch.history()} == {rank for _, rank in slow}


def cost() -> bool:
    """Processor time of one observation of about 200 computations."""
    case = Case(1, 4, 8, 13, 0.01, 0.2, "none", 1.0, 0, 0, 0, 0, 0, 100, 0.0)
    watch, seen = Watch(), list(observations(case))
    started = time.process_time()
    for observation in seen:
        watch.observe(observation)
    each = (time.process_time() - started) / len(seen)
    print(
        f"\ncost: {each * 1e3:.2f} ms for an iteration of {len(seen[0].computations)} computations"
    )


def real(data: Path) -> bool:
    """Runs whose truth is known: production traces, a calm run, two series of iteration times."""
    if not data.is_dir():
        print(f"\nreal runs left out: no folder {data}")
        return True
    from arro3.io import read_parquet

    def columns(path: Path) -> dict[str, np.ndarray]:
        table = read_parquet(str(path)).read_all()
        return {name: np.array(table[name].to_pylist()) for name in table.column_names}

    good = True
    for name, wanted in (("AR", {(0, 0)}), ("ST", set())):
        found = _bytedance(columns(data / "bytedance-stragglers" / f"trace-{name}.parquet"))
        print(f"\n{name}: {found or 'no straggler'}")
        good &= {(s.replica, s.stage) for s in found} == wanted
    runs = data / "perseus-sosp24" / "runs"
    found = _bert(columns(runs / "bert-1.3b_a100_pcie_pp4_mb32_computations.parquet"))
    print(f"\nBERT, 30 plans: {found or 'no straggler'}")
    good &= not found
    for name in ("gb200", "h100"):
        path = data / "megatron-iteration-times" / f"gpt3_tp2_pp2_{name}.csv"
        print(f"\n{name}:")
        watch = Watch()
        for line in path.read_text().splitlines()[1:]:
            step, seconds = line.split(",")
            watch.observe(Observation(0, int(step), [], time_s=float(seconds)))
        for s in watch.history():
            print("  ", s)
    return good


def _bytedance(c: dict[str, np.ndarray]) -> list[Straggler]:
    watch = Watch()
    compute = np.isin(c["optype"], ["forward-compute", "backward-compute"])
    for step in np.unique(c["step"]):
        for replica in np.unique(c["dp_rank"]):
            rows = np.flatnonzero(compute & (c["step"] == step) & (c["dp_rank"] == replica))
            watch.observe(
                Observation(
                    int(replica),
                    int(step),
                    [
                        (
                            Computation(int(c["stage"][i]), 0, str(c["optype"][i]).split("-")[0],
                                        int(c["mb_id"][i])),
                            float(c["duration"][i]),
                        )
                        for i in rows
                    ],
                )
            )  # fmt: skip
    return watch.history()


def _bert(c: dict[str, np.ndarray]) -> list[Straggler]:
    found: list[Straggler] = []
    for plan in np.unique(c["plan"]):
        watch = Watch()
        for iteration in range(30):
            rows = np.flatnonzero((c["plan"] == plan) & (c["iteration"] == iteration))
            computations = [
                (
                    Computation(int(c["stage"][i]), 0, str(c["instruction"][i]),
                                int(c["microbatch"][i])),
                    float(c["time_s"][i]),
                )
                for i in rows
            ]  # fmt: skip
            watch.observe(Observation(0, iteration, computations))
        found += watch.history()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=beside, help="the real measurements")
    parser.add_argument("--verbose", action="store_true", help="name the cases that went wrong")
    parser.add_argument("--only", choices=("nvidia", "cost", "real", "seeded"))
    options = parser.parse_args()
    parts: dict[str, Callable[[], bool]] = {
        "nvidia": lambda: nvidia(options.seed, 20),
        "cost": cost,
        "real": lambda: real(options.data),
        "seeded": lambda: seeded(options.cases, options.seed, options.verbose),
    }
    good = [part() for name, part in parts.items() if options.only in (None, name)]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
