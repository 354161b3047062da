"""Parquet files as columns. A process of its own reads them: a damaged file can end its reader.

A file that claims what cannot be, such as 2^60 rows, makes the reader ask for that much memory, and
abort. Then the other process is what ends.
"""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np

from perseusd.errors import TraceError
from perseusd.traces.columns import Columns

MAGIC = b"PAR1"
_FOOTER_BYTES = 8


def is_parquet(beginning: bytes) -> bool:
    return beginning.startswith(MAGIC)


def read_parquet(path: Path) -> Columns:
    """Raises TraceError for a file that is cut off or damaged."""
    _check_footer(path)
    command = [sys.executable, "-m", "perseusd.traces.parquet_process", str(path.absolute())]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode != 0:
        told = done.stderr.decode(errors="replace").strip().splitlines()
        reason = f" ({told[-1]})" if done.returncode == 1 and told else ""
        raise TraceError(f"{path}: a damaged Parquet file{reason}: fetch it again")
    try:
        with np.load(io.BytesIO(done.stdout), allow_pickle=False) as found:
            values = {name: found[name] for name in found.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise TraceError(f"{path}: cannot be read as Parquet ({error})") from None
    rows = len(next(iter(values.values()), ()))
    return Columns(path, values, range(1, rows + 1), "row")


def _check_footer(path: Path) -> None:
    """What a download that broke off looks like, said better than the reader can."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _FOOTER_BYTES))
        footer = file.read()
    whole = len(footer) == _FOOTER_BYTES and footer.endswith(MAGIC)
    if not whole or int.from_bytes(footer[:4], "little") + _FOOTER_BYTES > size:
        raise TraceError(
            f"{path}: a Parquet file that is cut off after {size} bytes: fetch it again"
        )
