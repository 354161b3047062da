"""Thirty of benchmarks/chaos.py's schedules, always the same ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).parents[2] / "benchmarks" / "chaos.py"
SCHEDULES = 30


@pytest.mark.timeout(900)
def test_whatever_fails_no_clock_stays_lowered_and_training_goes_on() -> None:
    """Kills, hangs, driver errors, a full disk, floods and garbage against a real daemon, clock
    process and job on the fake NVML library: clocks back in time, nothing dies of it, training
    goes on. Nearly all schedules begin with lowered clocks, and most of their faults meet some."""
    command = [sys.executable, str(CHAOS), "--schedules", str(SCHEDULES), "--seed", "110"]
    command += ["--jobs", "4", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert found["violations"] == 0
    assert found["schedules"] == SCHEDULES
    assert found["lowered"] >= 0.9 * SCHEDULES
    assert found["faults_while_lowered"] > 0.6 * found["faults"]
    assert len(found["by_kind_while_lowered"]) >= 15
    assert found["hook_calls"] > 10 * SCHEDULES
