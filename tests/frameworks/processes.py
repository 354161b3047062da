"""The processes of one distributed job, run to their end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

PATIENCE_S = 100.0  # of a busy machine with two cores


def outputs(script: Path, arguments: Sequence[Sequence[str]], **variables: str) -> list[str]:
    """Start the script once for each list of arguments; their standard outputs, all ended well."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), *own],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for own in arguments
    ]
    try:
        ended = [process.communicate(timeout=PATIENCE_S) for process in processes]
    except subprocess.TimeoutExpired:
        pytest.fail(f"{script.name} did not end: {_last_words(processes)}")
    finally:
        _last_words(processes)
    for process, (_, errors) in zip(processes, ended, strict=True):
        assert process.returncode == 0, errors[-4000:]
    return [output for output, _ in ended]


def _last_words(processes: Sequence[subprocess.Popen[str]]) -> list[str]:
    """End them, and what they wrote to standard error."""
    for process in processes:
        process.kill()
    return [process.communicate()[1][-2000:] for process in processes if process.stderr]
