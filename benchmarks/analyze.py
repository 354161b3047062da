"""`perseusctl analyze` on real traces with known answers, side by side with these.

    python benchmarks/analyze.py [FOLDER]

FOLDER holds the third-party traces (default: $PERSEUSD_DATA, else shared/data beside the
repository): ByteDance's straggler study, a run of the Perseus artifact, and iteration times of
Megatron-LM's golden values. Exit code 1 where an answer is not the known one.

What slowdown is right for AR can be seen without any model: its three healthy replicas do the same
work beside the slow one (see `observed_slowdown`). The study's own figure, 1.97, takes for usual
the mean over all workers and stages, the slow worker among them.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from perseusd.ctl.analyze.analysis import analyse
from perseusd.ctl.analyze.answer import answer
from perseusd.traces.parquet import read_parquet
from perseusd.traces.reading import read_trace

Answer = Mapping[str, Any]
Check = Callable[[Answer], bool]


def lasting(found: Answer) -> list[Mapping[str, Any]]:
    return [s for s in found["stragglers"] if not s["transient"]]


def share(found: Answer, stage: int, replica: int | None = None) -> float:
    return sum(
        place["share"]
        for place in found["critical_path_share"]
        if place["stage"] == stage and replica in (None, place["replica"])
    )


def spells(found: Answer) -> str:
    listed = [
        f"{s['since_iteration']}–{s['until_iteration']} {s['factor']:.2f}×"
        + (" (transient)" if s["transient"] else "")
        for s in found["stragglers"]
    ]
    return ", ".join(listed) or "none"


def near(spell: Mapping[str, Any], begin: int, end: int) -> bool:
    late, over = spell["since_iteration"] - begin, abs(spell["until_iteration"] - end)
    return 0 <= late <= 3 and over <= 5


def observed_slowdown(path: Path) -> float:
    """Of a trace of the straggler study with one slow replica, from time stamps alone.

    How long a replica's pipeline took is what its first stage saw, first forward to last backward,
    on that stage's own clock. Had the slow one taken as long as the slowest of the others, the
    iteration would have been shorter by the difference.
    """
    columns = read_parquet(path)
    step, replica = columns.integers("step"), columns.integers("dp_rank")
    start = columns.seconds("start_ts")
    end = start + columns.seconds("duration")
    first = columns.integers("stage") == 0
    computes = np.isin(columns.words("optype"), ["forward-compute", "backward-compute"])
    actual_s = healthy_s = 0.0
    for number in np.unique(step):
        own = [first & (step == number) & (replica == r) for r in np.unique(replica)]
        whole_s = max(float(end[rows].max() - start[rows].min()) for rows in own)
        pipelines = [rows & computes for rows in own]
        *_, healthy, slow = sorted(float(end[p].max() - start[p].min()) for p in pipelines)
        actual_s += whole_s
        healthy_s += whole_s - slow + healthy
    return actual_s / healthy_s


TRACES: Mapping[str, list[tuple[str, str, Callable[[Answer], object], Check]]] = {
    "bytedance-stragglers/trace-AR.parquet": [
        ("stragglers (replica, stage)", "(0, 0)",
         lambda a: [(s["replica"], s["stage"]) for s in a["stragglers"]],
         lambda a: [(s["replica"], s["stage"]) for s in a["stragglers"]] == [(0, 0)]),
        ("slowdown", "1.97 ± 0.05", lambda a: a["slowdown"],
         lambda a: abs(a["slowdown"] - 1.97) <= 0.05),
        ("share of replica 0 stage 0", "≥ 0.9 (0.96)", lambda a: share(a, 0, 0),
         lambda a: share(a, 0, 0) >= 0.9),
    ],
    "bytedance-stragglers/trace-ST.parquet": [
        ("stragglers", "none", spells, lambda a: not a["stragglers"]),
        ("share of stage 3", "the largest (0.69)", lambda a: round(share(a, 3), 4),
         lambda a: share(a, 3) > 0.5),
    ],
    "perseus-sosp24/runs/bert-1.3b_a100_pcie_pp4_mb32_computations.parquet": [
        ("iterations", "870", lambda a: a["iterations"], lambda a: a["iterations"] == 870),
        ("stragglers", "none", spells, lambda a: not a["stragglers"]),
    ],
    "megatron-iteration-times/gpt3_tp2_pp2_gb200.csv": [
        ("spells", "214–244, 1406–1425, at most one other", spells,
         lambda a: len(lasting(a)) >= 2 and len(a["stragglers"]) <= 3
         and near(lasting(a)[0], 214, 244) and near(lasting(a)[1], 1406, 1425)),
    ],
    "megatron-iteration-times/gpt3_tp2_pp2_h100.csv": [
        ("spells", "498–500, 927–930 as transients, at most one other", spells,
         lambda a: not lasting(a) and len(a["stragglers"]) <= 3),
    ],
}  # fmt: skip


def main() -> int:
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("PERSEUSD_DATA", beside))
    missed = 0
    for name, checks in TRACES.items():
        began_s = time.process_time()
        trace = read_trace(folder / name)
        found = answer(trace, [analyse(run) for run in trace.runs])
        print(f"{name}: {found['iterations']} iterations, {time.process_time() - began_s:.1f} s")
        for what, known, seen, check in checks:
            verdict = "ok" if check(found) else "MISSED"
            missed += verdict != "ok"
            print(f"  {verdict:6} {what}: {seen(found)} (known: {known})")
    seen_s = observed_slowdown(folder / "bytedance-stragglers/trace-AR.parquet")
    print(f"AR by its healthy replicas' own time stamps: slowdown {seen_s:.4f}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
