"""Seeded faults against a daemon, its clock process, its planner and a training job, all real.

    python benchmarks/chaos.py [--schedules N] [--seed S] [--jobs J] [--json]

A schedule is one to four faults within a few seconds, which may overlap: kills, hangs (SIGSTOP)
and ends of daemon, clock process, planner and ranks, a suspended node; NVML errors, hangs and
slowness by function and GPU, a lost GPU, power or heat below the lock, a foreign writer; no space
for the daemon's and the clock process's files; jumps of the wall clock; floods, garbage, forgeries
and crowds of clients; restarts. Everything runs on the fake NVML library (tests/nvmlfake), through
unmodified pynvml, and begins at a moment when the job's clocks are lowered.

Counted, of every schedule: clocks that stay lowered longer than 1 s after their lease ended (2 s
where the daemon was stopped or the clock process killed; while nobody can put a clock back, such as
when the driver refuses, the second counts from the end of that); a daemon, clock or planner process
that ended without being killed; training that stands still, hook calls that take long. The GPUs are
watched by a thread that knows the mapped file and nothing of the daemon, 250 times a second; what
this machine held that thread up is added to each limit, and told (`lag`). The daemon's own errors
in its log count as well, also where they kept clocks from being lowered again.

Each of the J workers has one rig, which goes from schedule to schedule. A rig that something was
wrong with, or that has no clock lowered again within 18 s, is replaced. One schedule on a new rig:
`--seed S --schedules 1`. Exits with 1 where anything was counted, or not all schedules were begun
(`--minutes` ran out, or the machine has too much to do for a rig to have its clocks lowered).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context, util
from pathlib import Path

from chaosparts.programs import build
from chaosparts.schedule import Outcome, Runner

_runners: list[Runner] = []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--schedules", type=int, default=30, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="the first one's")
    parser.add_argument("--jobs", type=int, default=4, metavar="J", help="beside each other")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin none after that")
    parser.add_argument("--json", action="store_true", help="one JSON object at the end")
    told = parser.parse_args()
    begin_s = time.monotonic()
    outcomes = []
    for outcome in _outcomes(told, begin_s + told.minutes * 60):
        outcomes.append(outcome)
        _tell(outcome, outcomes, told.schedules)
    summary = _summary(outcomes, time.monotonic() - begin_s)
    print(json.dumps(summary) if told.json else _text(summary), flush=True)
    return int(summary["violations"] > 0 or summary["schedules"] < told.schedules)


def _outcomes(told: argparse.Namespace, until_s: float) -> Iterator[Outcome]:
    jobs = min(told.jobs, told.schedules)
    seeds = range(told.seed, told.seed + told.schedules)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        library = build(Path(folder))
        kernels = [sys.executable, "-c", "import perseusd.core.planner"]
        subprocess.run(kernels, check=True)  # on a machine's first start they are compiled
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            parts = [pool.submit(_run, library, seed) for seed in seeds]
            for part in as_completed(parts):
                if not part.cancelled():
                    yield part.result()
                if time.monotonic() > until_s:
                    for waiting in parts:
                        waiting.cancel()
        ends = list(Path(folder).glob("end-*.json"))
        wrong = [text for end in ends for text in json.loads(end.read_text())]
        if wrong or not ends:
            yield Outcome(-1, ["the workers' end"], violations=wrong or ["no worker ended well"])


def _run(library: Path, seed: int) -> Outcome:
    """In a worker, whose rig lives as long as it does."""
    if not _runners:
        _runners.append(Runner(library))
        util.Finalize(None, _end, args=(library,), exitpriority=10)
    return _runners[0].run(seed)


def _end(library: Path) -> None:
    """A worker's end, and its rig's; what was wrong with that is left for the first process."""
    wrong = _runners[0].close()
    (library.parent / f"end-{os.getpid()}.json").write_text(json.dumps(wrong))


def _tell(outcome: Outcome, outcomes: list[Outcome], schedules: int) -> None:
    bad = sum(bool(o.violations) for o in outcomes)
    lowered = sum(o.lowered for o in outcomes)
    begun = sum(o.begun for o in outcomes)
    count = f"{begun}/{schedules}: {lowered} hit lowered clocks, {bad} with violations"
    print(f"{count}  (seed {outcome.seed}, {outcome.seconds:.1f} s)", file=sys.stderr, flush=True)
    if outcome.replaced:
        print(f"  a new rig, since no clock was lowered: {outcome.replaced}", file=sys.stderr)
    for violation in outcome.violations:
        print(f"  seed {outcome.seed}: {violation}", file=sys.stderr)
    if outcome.violations:
        print(f"  events: {'; '.join(outcome.events)}", file=sys.stderr)
        for line in outcome.log:
            print(f"    {line}", file=sys.stderr, flush=True)


def _summary(outcomes: list[Outcome], seconds: float) -> dict[str, object]:
    worst: dict[str, float] = {}
    for outcome in outcomes:
        for what, late_s in outcome.worst_s.items():
            worst[what] = max(worst.get(what, 0.0), late_s)
    bad = [outcome for outcome in outcomes if outcome.violations]
    begun = [outcome for outcome in outcomes if outcome.begun and outcome.seed >= 0]
    return {
        "schema_version": 1,
        "schedules": len(begun),
        "not_begun": [o.seed for o in outcomes if not o.begun],
        "rigs_replaced": {o.seed: o.replaced for o in outcomes if o.replaced},
        "lowered": sum(outcome.lowered for outcome in outcomes),
        "faults": sum(len(outcome.events) for outcome in begun),
        "faults_while_lowered": sum(len(outcome.hits) for outcome in outcomes),
        "by_kind_while_lowered": dict(Counter(hit for o in outcomes for hit in o.hits)),
        "violations": sum(len(outcome.violations) for outcome in outcomes),
        "failed": [asdict(outcome) for outcome in bad],
        "longest_lowered_s": {what: round(late_s, 3) for what, late_s in sorted(worst.items())},
        "hook_calls": sum(outcome.calls for outcome in outcomes),
        "longest_hook_call_s": round(max(o.longest_call_s for o in outcomes), 4),
        "iterations": sum(outcome.iterations for outcome in outcomes),
        "lag_s": round(max(outcome.lag_s for outcome in outcomes), 3),
        "seconds": round(seconds, 1),
    }


def _text(summary: dict[str, object]) -> str:
    return "\n".join(f"{name:22} {value}" for name, value in summary.items())


if __name__ == "__main__":
    sys.exit(main())
