"""Profile files: measured time and energy of every stage's instructions at every clock.

CSV with the columns `stage,instruction,frequency,time,energy` (stage from 0; instruction as in the
glossary; MHz; s; J), the format of Zeus's pipeline frequency optimizer and of lowtime. Rows may
come in any order, other columns are ignored, blank lines skipped.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
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
_TOO_MANY = "\0"  # the name of a row's values beyond the columns: no column can have it

Key = tuple[int, str]  # stage, instruction
_Points = dict[int, tuple[float, float]]  # clock → time, energy


def read_profile(path: str | Path) -> dict[Key, Curve]:
    """Every stage's and instruction's curve, clocks ascending.

    Raises ProfileError naming file, line, value and fix.
    """
    points: dict[Key, _Points] = {}
    for where, (stage, instruction), clock, time_s, energy_j in _rows(Path(path)):
        of_key = points.setdefault((stage, instruction), {})
        if clock in of_key:
            raise ProfileError(
                f"{where}: {instruction} of stage {stage} at {clock} MHz is there twice: "
                "keep one row for each clock (of several ranks on a stage, one rank's)"
            )
        of_key[clock] = (time_s, energy_j)
    _check_complete(Path(path), points)
    return {key: _curve(of_key) for key, of_key in sorted(points.items())}


def _rows(path: Path) -> Iterator[tuple[str, Key, int, float, float]]:
    """(file:line, key, clock, time, energy) of every row."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey=_TOO_MANY, skipinitialspace=True)
            names = [name.strip() for name in reader.fieldnames or ()]
            _check_columns(path, names)
            reader.fieldnames = names
            for row in reader:
                yield _parsed(f"{path}:{reader.line_num}", row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ProfileError(
            f"{path} cannot be read as a profile ({reason}): give a CSV file "
            f"with the columns {','.join(COLUMNS)}"
        ) from error


def _check_columns(path: Path, names: Sequence[str]) -> None:
    expected = f"the first line must be {','.join(COLUMNS)}"
    if not names:
        raise ProfileError(f"{path} is empty: {expected}")
    other = next((d for d in ";\t|" if len(names) == 1 and d in names[0]), None)
    if other is not None:
        raise ProfileError(f"{path}:1: columns are separated by {other!r}: use commas; {expected}")
    if missing := [c for c in COLUMNS if c not in names]:
        raise ProfileError(f"{path}:1: no column {', '.join(missing)}: {expected}")
    if twice := [c for c in COLUMNS if names.count(c) > 1]:
        raise ProfileError(f"{path}:1: column {twice[0]} is there twice: {expected}")


def _parsed(where: str, row: Mapping[str, str | None]) -> tuple[str, Key, int, float, float]:
    if any(row.get(_TOO_MANY) or ()):
        raise ProfileError(
            f"{where}: more values than columns: decimals are written with a point, as 0.05"
        )
    text = {column: (row[column] or "").strip() for column in COLUMNS}
    if text["instruction"] not in _INSTRUCTIONS:
        raise ProfileError(
            f"{where}: unknown instruction {text['instruction']!r}: "
            f"use one of {', '.join(_INSTRUCTIONS)}"
        )
    stage = _whole(where, "stage", text["stage"], least=0)
    clock = _whole(where, "frequency", text["frequency"], least=1, unit=" MHz")
    time_s = _positive(where, "time", text["time"])
    energy_j = _positive(where, "energy", text["energy"])
    return where, (stage, text["instruction"]), clock, time_s, energy_j


def _whole(where: str, column: str, text: str, *, least: int, unit: str = "") -> int:
    value = _number(where, column, text)
    if value != int(value) or value < least:
        raise ProfileError(f"{where}: {column} is {text}: must be a whole number ≥ {least}{unit}")
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
