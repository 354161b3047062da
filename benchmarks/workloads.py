"""What the whole loop saves on every named workload, emulated: one table, the bounds beside it.

    python benchmarks/workloads.py [--seconds 180] [--only NAME@GPU ...] [--json FILE]

Each row is one run of `perseusd demo --json`, real processes in real time; the peer is the bound
that no planner can beat (every computation at its own clock, free clock changes, curves known): in
the time that full clocks take, and in the time that held iterations took. Twelve runs of three
minutes take 36 minutes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HEADER = (
    "| workload | GPU (emulated) | stages × microbatches | iteration s | saved % | slower % "
    "| bound % | share % | bound as run % | share % | writes | learned in "
    "| learning slower % |"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=180.0, help="per workload")
    parser.add_argument("--noise", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", metavar="NAME@GPU", help="default: all twelve")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also keep the reports there")
    given = parser.parse_args()
    reports = []
    print(HEADER)
    print("|" + "---|" * (HEADER.count("|") - 1), flush=True)
    for name, gpu in workloads(given.only):
        report = run(name, gpu, given)
        reports.append(report)
        print(row(report), flush=True)
    if given.json is not None:
        given.json.write_text(json.dumps(reports, indent=1))
    return 0


def workloads(only: list[str] | None) -> list[tuple[str, str]]:
    if only:
        return [(name, gpu) for name, _, gpu in (word.partition("@") for word in only)]
    listed = json.loads(perseusd("demo", "--list", "--json"))
    return [(w["workload"], w["gpu"]) for w in listed["workloads"]]


def run(name: str, gpu: str, given: argparse.Namespace) -> dict[str, Any]:
    words = ["demo", "--json", "--workload", name, "--gpu", gpu]
    words += ["--seconds", str(given.seconds), "--noise", str(given.noise)]
    report: dict[str, Any] = json.loads(perseusd(*words, "--seed", str(given.seed)))
    return report


def perseusd(*words: str) -> str:
    command = [sys.executable, "-m", "perseusd", *words]
    return subprocess.run(
        command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ).stdout


def row(r: dict[str, Any]) -> str:
    def percent(value: float | None, digits: int = 1) -> str:
        return "–" if value is None else f"{100 * value:.{digits}f}"

    baseline = next(p for p in r["phases"] if p["state"] == "baseline")
    share = r["saving"] / r["bound_saving"] if r["saving"] is not None else None
    as_run = r["saving"] / r["bound_saving_as_run"] if r["saving"] is not None else None
    cells = [
        r["workload"],
        r["gpu"],
        f"{r['stages']} × {r['microbatches']}",
        f"{baseline['iteration_time_s']:.2f}",
        percent(r["saving"]),
        percent(r["slowdown"], 2),
        percent(r["bound_saving"]),
        percent(share, 0),
        percent(r["bound_saving_as_run"]),
        percent(as_run, 0),
        f"{r['clock_writes_per_iteration'] or 0:.1f}",
        str(r["learning_iterations"]),
        percent(r["learning_slowdown"], 2),
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
