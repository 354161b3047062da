"""Profile files: measured time and energy of every stage's instructions at every clock.

CSV with the columns `stage,instruction,frequency,time,energy` (stage from 0; instruction as in the
glossary; MHz; s; J), the format of Zeus's pipeline frequency optimizer and of lowtime. Rows may
come in any order, other columns are ignored, blank lines skipped.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from perseusd.core.model import Curve
from perseusd.errors import ProfileError

COLUMNS = ("stage", "instruction", "frequency", "time", "energy")
_INSTRUCTIONS = (
    "forward",
    "backward",
    "input_gradient",
    "weight_gradient",
    "recompute",
    "iteration",
    "other",
)

Key = tuple[int, str]  # stage, instruction
_Points = dict[int, tuple[float, float]]  # clock → time, energy


def read_profile(path: str | Path) -> dict[Key, Curve]:
    """Every stage's and instruction's curve, clocks ascending.

    Raises ProfileError naming file, line, value and fix.
    """
    points: dict[Key, _Points] = {}
    for where, key, clock, time_s, energy_j in _rows(Path(path)):
        of_key = points.setdefault(key, {})
        if clock in of_key:
            stage, instruction = key
            raise ProfileError(
                f"{where}: {instruction} of stage {stage} at {clock} MHz is there twice: "
                "keep one row for each clock"
            )
        of_key[clock] = (time_s, energy_j)
    _check_complete(Path(path), points)
    return {key: _curve(of_key) for key, of_key in sorted(points.items())}


def _rows(path: Path) -> Iterator[tuple[str, Key, int, float, float]]:
    """(file:line, key, clock, time, energy) of every row."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            missing = [c for c in COLUMNS if c not in (reader.fieldnames or ())]
            if missing:
                raise ProfileError(
                    f"{path}:1: no column {', '.join(missing)}: "
                    f"the first line must be {','.join(COLUMNS)}"
                )
            for row in reader:
                yield _parsed(f"{path}:{reader.line_num}", row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ProfileError(
            f"{path} cannot be read as a profile ({error}): give a CSV file "
            f"with the columns {','.join(COLUMNS)}"
        ) from error


def _parsed(where: str, row: Mapping[str, str | None]) -> tuple[str, Key, int, float, float]:
    text = {column: (row[column] or "").strip() for column in COLUMNS}
    if text["instruction"] not in _INSTRUCTIONS:
        raise ProfileError(
            f"{where}: unknown instruction {text['instruction']!r}: "
            f"use one of {', '.join(_INSTRUCTIONS)}"
        )
    stage = _whole(where, "stage", text["stage"], least=0)
    clock = _whole(where, "frequency", text["frequency"], least=1)
    time_s = _positive(where, "time", text["time"])
    energy_j = _positive(where, "energy", text["energy"])
    return where, (stage, text["instruction"]), clock, time_s, energy_j


def _whole(where: str, column: str, text: str, *, least: int) -> int:
    value = _number(where, column, text)
    if value != int(value) or value < least:
        raise ProfileError(f"{where}: {column} is {text}: must be a whole number ≥ {least}")
    return int(value)


def _positive(where: str, column: str, text: str) -> float:
    value = _number(where, column, text)
    if value <= 0:
        raise ProfileError(f"{where}: {column} is {text}: must be > 0")
    return value


def _number(where: str, column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ProfileError(f"{where}: {column} is {text!r}, not a number") from None
    if not math.isfinite(value):
        raise ProfileError(f"{where}: {column} is {text}: must be finite")
    return value


def _check_complete(path: Path, points: Mapping[Key, _Points]) -> None:
    """Every stage from 0, each with the same instructions, each of these at two clocks or more."""
    if not points:
        raise ProfileError(f"{path}: no rows after the first line: measure at least one stage")
    instructions = {instruction for _, instruction in points}
    for stage in range(1 + max(stage for stage, _ in points)):
        there = {i for s, i in points if s == stage}
        if not there:
            raise ProfileError(
                f"{path}: stage {stage} is missing: stages count from 0 without gaps"
            )
        if absent := sorted(instructions - there):
            raise ProfileError(
                f"{path}: stage {stage} has no {absent[0]}, which other stages have: measure it too"
            )
    for (stage, instruction), of_key in points.items():
        if len(of_key) < 2:
            raise ProfileError(
                f"{path}: {instruction} of stage {stage} has one clock only "
                f"({min(of_key)} MHz): measure it at two or more"
            )


def _curve(points: _Points) -> Curve:
    clocks = tuple(sorted(points))
    return Curve(
        clocks,
        tuple(points[clock][0] for clock in clocks),
        tuple(points[clock][1] for clock in clocks),
    )
