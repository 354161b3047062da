"""`python -m perseusd.traces.parquet_process FILE`: its columns, as .npz to standard output.

Exit code 1 with one line on standard error, or a signal, for a file that cannot be read.
"""

from __future__ import annotations

import os
import resource
import sys
from typing import Any

import numpy as np
from arro3.core import Table
from arro3.io import read_parquet
from numpy.typing import NDArray

from perseusd.traces.columns import MOST_ROWS

MOST_MEMORY = 8 << 30
"""Bytes of address space: what a damaged file claims must not take the machine's."""


def main(path: str) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        columns = _read(path)
    except BaseException as error:  # noqa: BLE001 - a panic of the reader's is no Exception
        reason = str(error) or type(error).__name__
        sys.stderr.write(f"\n{reason.splitlines()[0]}\n")
        return 1
    with os.fdopen(sys.stdout.fileno(), "wb", closefd=False) as out:
        np.savez(out, **columns)
    return 0


def _read(path: str) -> dict[str, Any]:
    batches, rows = [], 0
    for batch in (reader := read_parquet(path)):
        batches.append(batch)
        rows += batch.num_rows
        if rows > MOST_ROWS:
            raise ValueError(f"more than {MOST_ROWS} rows: cut it into several")
    table = Table.from_batches(batches, schema=reader.schema)
    return {name: _plain(table.column(name)) for name in table.column_names}


def _plain(column: Any) -> NDArray[Any]:
    """Numbers or words; NaN or nothing where one is missing."""
    if column.null_count == 0:
        try:
            array: NDArray[Any] = column.to_numpy()
        except (NotImplementedError, TypeError, ValueError):
            pass
        else:
            if array.dtype.kind in "iuf":
                return array
    values = column.combine_chunks().to_pylist()
    if all(value is None or isinstance(value, int | float) for value in values):
        return np.array([np.nan if value is None else float(value) for value in values])
    return np.array(["" if value is None else str(value) for value in values])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
