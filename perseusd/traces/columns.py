"""A table on disk, Parquet or CSV: named columns, every value checked where it is asked for.

Whoever reads a trace says what a column must hold; what does not is named with file, row, column,
value and fix. Rows are counted as people count them: a CSV file's by line, a Parquet file's from 1.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from perseusd.errors import TraceError

MOST_ROWS = 20_000_000
"""Of one file; more would not fit the memory of a small machine."""

_TOO_MANY = "\0"  # the name of a row's values beyond the columns: no column can have it

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Columns:
    """A file's columns by name, equally long; read them with the methods, which check.

    rows: what people call each row, a number after `row_word`.
    """

    path: Path
    values: Mapping[str, NDArray[Any] | Sequence[Any]]
    rows: Sequence[int]
    row_word: Literal["row", "line"]

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self.values)

    def __len__(self) -> int:
        return len(self.rows)

    def seconds(self, name: str, *, zero: bool = True) -> Floats:
        """Durations or stamps: finite numbers of at least 0. zero: whether 0 itself may stand."""
        found = self._numbers(name)
        wrong = ~(found >= 0) | ~np.isfinite(found) if zero else ~(found > 0) | ~np.isfinite(found)
        if wrong.any():
            bound = "≥ 0" if zero else "> 0"
            self._refuse(name, int(np.argmax(wrong)), f"must be a finite number of seconds {bound}")
        return found

    def integers(self, name: str, least: int = 0) -> Integers:
        found = self._numbers(name)
        wrong = ~((found >= least) & (found == np.floor(found)) & (found < 2**53))
        if wrong.any():
            self._refuse(name, int(np.argmax(wrong)), f"must be a whole number ≥ {least}")
        return found.astype(np.int64)

    def words(self, name: str) -> list[str]:
        found = [str(value) for value in self.values[name]]
        if not all(found):
            self._refuse(name, found.index(""), "must be a word")
        return found

    def where(self, row: int) -> str:
        """A row's place, for an error about it."""
        return f"{self.path}, {self.row_word} {self.rows[row]}"

    def _numbers(self, name: str) -> Floats:
        found = self.values[name]
        if isinstance(found, np.ndarray) and found.dtype.kind in "iuf":
            return found.astype(np.float64)  # integers beyond 2^53 are refused where they matter
        numbers = np.empty(len(found))
        for row, value in enumerate(found):
            try:
                numbers[row] = float(value)
            except ValueError:
                self._refuse(name, row, "must be a number")
        return numbers

    def _refuse(self, name: str, row: int, wanted: str) -> NoReturn:
        value = self.values[name][row]
        text = str(value) or "nothing"
        shown = text if len(text) <= 40 else f"{text[:40]}…"
        raise TraceError(f"{self.where(row)}: {name} is {shown}: {wanted}")


def read_csv(path: Path) -> Columns:
    """Raises TraceError for what is no table of comma-separated values."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey=_TOO_MANY, skipinitialspace=True)
            names = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = names
            rows, lines = [], []
            for row in _csv_rows(path, reader, names):
                rows.append(row)
                lines.append(reader.line_num)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise TraceError(f"{path}: cannot be read as a CSV file ({reason})") from None
    if twice := [name for name in names if names.count(name) > 1]:
        raise TraceError(f"{path}, line 1: column {twice[0]} is there twice: keep one of them")
    return Columns(path, {name: [row[name] for row in rows] for name in names}, lines, "line")


def _csv_rows(
    path: Path, reader: csv.DictReader[str], names: Sequence[str]
) -> Iterator[Mapping[str, str]]:
    for count, row in enumerate(reader):
        if count >= MOST_ROWS:
            raise TraceError(f"{path}: more than {MOST_ROWS} rows: cut it into several")
        if any(row.get(_TOO_MANY) or ()):
            raise TraceError(
                f"{path}, line {reader.line_num}: more values than columns: decimals are written "
                "with a point, as 0.05"
            )
        yield {name: (row[name] or "").strip() for name in names}
