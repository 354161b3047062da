"""Which reader a file is for: told by what is in it, not by what it is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from perseusd.errors import TraceError
from perseusd.traces import bytedance, iteration_times, perseus_run, recorded_run
from perseusd.traces.columns import Columns, read_csv
from perseusd.traces.parquet import is_parquet, read_parquet
from perseusd.traces.recording import is_recording
from perseusd.traces.trace import Trace

_TABLES: Mapping[tuple[str, ...], Callable[[Columns], Trace]] = {
    bytedance.COLUMNS: bytedance.read,
    perseus_run.COLUMNS: perseus_run.read,
    perseus_run.ITERATION_COLUMNS: perseus_run.read_iterations,
    iteration_times.COLUMNS: iteration_times.read,
}


def read_trace(path: Path) -> Trace:
    """The runs in a file: a recording of ours, or a table with the columns of a known trace.

    Raises TraceError naming file, place, value and fix.
    """
    beginning = _beginning(path)
    if not beginning:
        raise TraceError(f"{path} is empty: was it written to the end?")
    if is_recording(beginning):
        return recorded_run.read(path)
    columns = read_parquet(path) if is_parquet(beginning) else _table_of_text(path, beginning)
    for needed, read in _TABLES.items():
        if columns.names.issuperset(needed):
            if not len(columns):
                raise TraceError(f"{path}: the columns of a trace, and no rows")
            return read(columns)
    raise TraceError(
        f"{path}: its columns are {_listed(columns.names)}, which is no known trace: give a "
        f"recording of `perseusctl record`, or a table with {_known()}"
    )


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4096)
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error.strerror}): give a trace file") from None


def _table_of_text(path: Path, beginning: bytes) -> Columns:
    if b"\0" in beginning:
        raise TraceError(
            f"{path}: neither a recording nor Parquet nor text: give a recording of "
            f"`perseusctl record`, or a table with {_known()}"
        )
    return read_csv(path)


def _known() -> str:
    return "; or ".join(",".join(columns) for columns in _TABLES)


def _listed(names: frozenset[str]) -> str:
    shown = [name if name.isprintable() else repr(name) for name in sorted(names) if name]
    return ",".join(shown[:12]) + (",…" if len(shown) > 12 else "") or "unnamed"
