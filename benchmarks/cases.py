"""Problems on real measurements, shared by the planner's benchmarks.

The measured GPT-3 175B profiles, and the ten uneven workloads of stage_times.csv with the curves of
the same GPU family's profile scaled to each stage's measured times (energy scaled alike).
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Iterator
from pathlib import Path

from perseusd.core.model import Curve, Kind, Problem
from perseusd.core.schedules import one_f_one_b, pipeline
from perseusd.traces.profile import read_profile

# Watts of a GPU waiting in communication, measured by the profiles' authors.
BLOCKING_W = {"a100_sxm": 83.64, "a40": 70.38}


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with --data: the folder that holds perseus-sosp24."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=os.environ.get("PERSEUSD_DATA", beside))
    return parser


def measurements(data: Path) -> Path:
    folder = Path(data) / "perseus-sosp24"
    if not folder.is_dir():
        raise SystemExit(f"no measurements at {folder}: name their folder with --data")
    return folder


def profile(folder: Path, gpu: str) -> dict[tuple[int, str], Curve]:
    return read_profile(folder / "stage_profile" / f"gpt3-175b_{gpu}.csv")


def gpt3(folder: Path, gpu: str, microbatches: int, **settings) -> Problem:
    """GPT-3 175B, 8 stages, 1F1B; settings: of Problem."""
    curves = {Kind(stage, 0, i): curve for (stage, i), curve in profile(folder, gpu).items()}
    return one_f_one_b_problem(gpu, curves, 8, microbatches, **settings)


def uneven(folder: Path, microbatches: int, **settings) -> Iterator[tuple[str, Problem]]:
    """(name, problem) of the ten uneven workloads."""
    measured: dict[tuple[str, str], list[dict[str, str]]] = {}
    with (folder / "stage_times.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            measured.setdefault((row["gpu"], row["model"]), []).append(row)
    for (gpu, model), rows in measured.items():
        family = "a100_sxm" if gpu.startswith("a100") else "a40"
        curves = _scaled(profile(folder, family), rows)
        problem = one_f_one_b_problem(family, curves, len(rows), microbatches, **settings)
        yield f"{model} {gpu}", problem


def one_f_one_b_problem(
    gpu: str, curves: dict[Kind, Curve], stages: int, microbatches: int, **settings
) -> Problem:
    built = pipeline(one_f_one_b(stages, microbatches))
    return Problem(built, curves, [BLOCKING_W[gpu]] * stages, **settings)


def _scaled(
    borrowed: dict[tuple[int, str], Curve], rows: list[dict[str, str]]
) -> dict[Kind, Curve]:
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
