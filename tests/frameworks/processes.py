"""The processes of one distributed job, run to their end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PATIENCE_S = 100.0  # importing a framework takes 10 s of processor time by itself


def run_ranks(
    worker: str, folder: Path, *arguments: str, ranks: int = 2, **variables: str
) -> list[Any]:
    """Run a job of that many processes; per rank, what it wrote to FOLDER/RANK.json.

    worker: a script beside this one that takes RANK WORLD_SIZE FOLDER and the arguments.
    variables: added to a bare environment.
    """
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder), "CUDA_VISIBLE_DEVICES": ""}
    script = str(Path(__file__).with_name(worker))
    logs = [folder / f"{rank}.log" for rank in range(ranks)]
    started = []
    for rank, log in enumerate(logs):
        command = [sys.executable, script, str(rank), str(ranks), str(folder), *arguments]
        with log.open("w") as stream:
            started.append(
                subprocess.Popen(
                    command, env={**environ, **variables}, stdout=stream, stderr=stream
                )
            )
    codes = _ended(started)
    said = "\n".join(log.read_text()[-4000:] for log in logs)
    assert codes == [0] * ranks, said
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]


def _ended(started: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """Their exit codes; those that do not end are ended, and have one that says so."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and any(p.poll() is None for p in started):
        if any(p.poll() for p in started):
            break  # the others would wait for it
        time.sleep(0.05)
    for process in started:
        if process.poll() is None:
            process.kill()
    return [process.wait() for process in started]
