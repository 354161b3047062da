"""The examples run as they say, beside the daemon and without one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perseusd.emulation.daemon import DaemonProcess, ask

EXAMPLES = Path(__file__).parents[1] / "examples"
PATIENCE_S = 60.0


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    """A short path: a Unix socket's has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="perseusd-") as folder:
        yield Path(folder)


def start(runtime_dir: Path, *command: str) -> subprocess.Popen[str]:
    example, *arguments = command
    environ = {k: v for k, v in os.environ.items() if not k.startswith("PERSEUS_")}
    return subprocess.Popen(
        [sys.executable, "-X", "dev", str(EXAMPLES / example), *arguments],
        env=environ | {"PERSEUS_RUNTIME_DIR": str(runtime_dir)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def job(runtime_dir: Path) -> Any:
    """The only job, with its rank count and place in its life, or None."""
    jobs = ask(runtime_dir / "status.sock", {"command": "status"}, timeout_s=20)["jobs"]
    return jobs[0] if jobs else None


def followed(process: subprocess.Popen[str], runtime_dir: Path) -> list[dict[str, Any]]:
    """The job as status shows it until the process has ended."""
    seen = []
    deadline = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < deadline:
        if (now := job(runtime_dir)) is not None:
            seen.append(now)
        time.sleep(0.1)
    return seen


def ended_well(process: subprocess.Popen[str]) -> None:
    errors = process.communicate(timeout=PATIENCE_S)[1]
    assert (process.returncode, errors) == (0, "")


def test_the_plain_loop_is_understood(runtime_dir: Path) -> None:
    """All ranks are known, the order is understood, stage 1 is seen to be the slowest; it ends."""
    with DaemonProcess(runtime_dir, 4):
        process = start(runtime_dir, "plain.py", "12")
        seen = followed(process, runtime_dir)
        ended_well(process)
        while job(runtime_dir) is not None:  # until all ranks are known to have ended
            time.sleep(0.1)
    assert {(j["id"].split(":")[1], j["expected_ranks"]) for j in seen} == {("plain", 4)}
    understood = [j for j in seen if j["ranks"] == 4 and j["iteration_time_s"]]
    assert understood[-1]["iteration"] > understood[0]["iteration"] + 3
    assert all(j["why_code"] not in ("order", "topology_unknown") for j in seen)
    shares = {path["stage"]: path["share"] for path in understood[-1]["critical_path"]}
    assert max(shares, key=shares.__getitem__) == 1


def test_the_plain_loop_needs_no_daemon(runtime_dir: Path) -> None:
    """Without one it ends with 0 and complains of nothing; it says what it does and has done."""
    process = start(runtime_dir, "plain.py", "2")
    said, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, errors) == (0, "")
    began, ended = said.splitlines()
    assert began == "2 iterations on 4 processes; watch: perseusctl status --watch"
    assert ended.startswith("2 iterations done, ")
