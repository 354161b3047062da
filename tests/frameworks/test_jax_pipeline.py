"""examples/jax_pipeline.py beside a real daemon: one process, four ranks, an order understood."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from perseusd.emulation.daemon import ask

EXAMPLE = Path(__file__).parents[2] / "examples" / "jax_pipeline.py"
PATIENCE_S = 80.0


def understood(folder: Path, trainer: subprocess.Popen[str]) -> Any:
    """The job, once the daemon knows the time of its iterations and the slack of its stages."""
    deadline_s = time.monotonic() + PATIENCE_S
    while trainer.poll() is None and time.monotonic() < deadline_s:
        jobs = ask(folder / "status.sock", {"command": "status"}, timeout_s=20)["jobs"]
        if jobs and jobs[0]["slack"] and jobs[0]["iteration_time_s"]:
            return jobs[0]
        time.sleep(0.1)
    trainer.kill()
    pytest.fail(f"not understood: {trainer.communicate()[1]}")


def test_the_example_is_understood(observed_folder: Path) -> None:
    """Whole iterations of every stage are seen, and that its times are the runtime's."""
    environ = {"PATH": os.environ["PATH"], "PERSEUS_RUNTIME_DIR": str(observed_folder)}
    command = [sys.executable, "-W", "error", str(EXAMPLE), "--iterations", "100000"]
    with subprocess.Popen(
        command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as trainer:
        try:
            job = understood(observed_folder, trainer)
        finally:
            trainer.kill()
    assert job["id"].endswith(f":pid-{trainer.pid}")
    assert (job["ranks"], job["missing_ranks"]) == (4, [])
    assert job["time_source"] == "ready"
    assert sorted(stage["stage"] for stage in job["slack"]) == [0, 1, 2, 3]
