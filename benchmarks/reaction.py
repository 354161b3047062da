"""How soon the daemon acts on stragglers, in virtual time.

    python benchmarks/reaction.py [--workload NAME@GPU] [--onsets 50] [--noise 0.01] [--seed 0]

Slow ranks and slow replicas of 1.2–3×, sudden or in a ramp, in jobs of 2–4 replicas, nothing
announced. Onset → told → a GPU at another plan's clock, in whole iterations and in milliseconds;
and after their end, the iterations that our clocks still made more than 1 % longer. References:
GREYHOUND (ATC 2025) reacts after 10.56 s on average; NVIDIA's resiliency extension looks every 60 s
by default.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import mean, median

from perseusd.emulation.onsets import Onset, onsets
from perseusd.emulation.workloads import load_workload

A_RUN = 8
"""Onsets of one run."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", default="bert-1.3b@a100-pcie")
    parser.add_argument("--onsets", type=int, default=50)
    parser.add_argument("--noise", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    told = parser.parse_args()
    starts = range(0, told.onsets, A_RUN)
    runs = [
        (told.workload, 2 + n % 3, min(A_RUN, told.onsets - first), told.seed + n, told.noise)
        for n, first in enumerate(starts)
    ]
    seen: list[Onset] = []
    with ProcessPoolExecutor(told.jobs, mp_context=get_context("spawn")) as pool:
        for found in pool.map(_run, runs):
            for onset in found:
                print(_row(onset), flush=True)
            seen += found
    _summary([o for o in seen if not o.slow.ramp], "sudden")
    _summary([o for o in seen if o.slow.ramp], "in a ramp, from its beginning")
    return 0


def _run(run: tuple[str, int, int, int, float]) -> list[Onset]:
    workload, replicas, count, seed, noise = run
    return onsets(load_workload(*workload.split("@")), replicas, count, seed, noise)


def _row(seen: Onset) -> str:
    slow = seen.slow
    who = f"replica {slow.replica}" + ("" if slow.rank is None else f" stage {slow.rank}")
    reaction = "never" if seen.reaction_s is None else f"{1e3 * seen.reaction_s:.0f} ms"
    saved = "" if seen.saved is None else f"saved {100 * seen.saved:.1f} %"
    return (
        f"{who:18} {slow.factor:.2f}x ramp {slow.ramp}: told after {seen.detected}, written after "
        f"{seen.written} more ({reaction}), {seen.late} late at its end, "
        f"{seen.in_a_row} in a row over 1 %, {saved} (before {100 * seen.before:.1f} %)"
    )


def _summary(seen: Sequence[Onset], what: str) -> None:
    if not seen:
        return
    print(f"\n{len(seen)} onsets, {what}:")
    for name, of in (
        ("told after (iterations)", lambda o: o.detected),
        ("written, more iterations", lambda o: o.written),
        ("onset to new clock (ms)", lambda o: o.reaction_s and 1e3 * o.reaction_s),
        ("late at the end (iterations)", lambda o: o.late),
        ("in a row over 1 %", lambda o: o.in_a_row),
    ):
        _distribution(name, seen, of)
    saved = [o.saved for o in seen if o.saved is not None]
    if saved:
        lasting, before = 100 * mean(saved), 100 * mean(o.before for o in seen)
        print(f"  saved while it lasts: mean {lasting:.1f} %, before {before:.1f} %")


def _distribution(name: str, seen: Sequence[Onset], of: Callable[[Onset], float | None]) -> None:
    values = sorted(v for o in seen if (v := of(o)) is not None)
    if not values:
        print(f"  {name:30} none of {len(seen)}")
        return
    ninth = values[min(len(values) - 1, int(0.9 * len(values)))]
    print(
        f"  {name:30} median {median(values):6.0f}  p90 {ninth:6.0f}  max {values[-1]:6.0f}  "
        f"({len(values)} of {len(seen)})"
    )


if __name__ == "__main__":
    sys.exit(main())
