"""A status object as the daemon makes it, for metrics and health that are read from it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from perseusd.exporter.snapshot import Snapshot

HISTOGRAM = {"buckets": [[0.001, 3], [0.01, 5]], "count": 6, "sum": 0.25}

JOB: dict[str, Any] = {
    "id": "alice:gpt3", "state": "hold", "ranks": 2, "expected_ranks": 2, "iteration": 41,
    "iteration_time_s": 0.5, "deadline_s": 0.502, "why_code": None, "predicted_saving": None,
    "saving": 0.12, "saving_low": 0.1, "saving_high": 0.14,
    "slowdown": 0.002, "slowdown_low": 0.001, "slowdown_high": 0.003,
    "energy_saved_j": 5000.0, "energy_saved_j_low": 4000.0, "energy_saved_j_high": 6000.0,
    "stragglers": [],
}  # fmt: skip

GPU: dict[str, Any] = {
    "uuid": "GPU-0", "index": 0, "name": "NVIDIA A100", "clock_mhz": 1200, "requested_mhz": 1215,
    "power_w": 250.5, "energy_j": 1e6, "holder": "alice:gpt3", "state": "ok", "reasons": [],
    "follows_request": "yes", "standing_mhz": None, "agrees": True,
    "error": None, "withheld": None, "withheld_code": None,
    "readings": 100, "readings_failed": 0, "clock_writes": 7, "clock_writes_failed": 1,
}  # fmt: skip

STATUS: dict[str, Any] = {
    "schema_version": 1,
    "daemon": {
        "version": "0.1.0", "uptime_s": 60.0, "started_s": 1.7e9, "mode": "act",
        "clock_process": "alive", "emulated": False, "planner": "ready", "planner_restarts": 0,
        "driver": "held", "missing_gpus": [], "released": {},
        "clients": 2, "client_processes": 2, "cpu_s": 1.5, "resident_bytes": 10_000_000,
    },
    "gpus": [GPU, GPU | {"uuid": "GPU-1", "index": 1, "requested_mhz": None, "holder": None}],
    "jobs": [JOB],
    "counters": {
        "events": {"hello": 2, "stage_start": 10, "stage_end": 10, "goodbye": 0},
        "events_lost": 0, "refused": {}, "clock_writes": {"ok": 8, "failed": 1},
        "clock_write_s": HISTOGRAM, "turn_s": HISTOGRAM, "decision_s": HISTOGRAM,
        "plan_s": HISTOGRAM, "plans": {"asked": 3, "made": 2, "failed": 1},
        "clock_process_lost": 0, "heartbeats_lost": 0, "jobs_ended": 4,
        "reloads": {"done": 2, "refused": 0},
        "states": {"hold": 1}, "releases": {"too_slow": 2}, "stragglers": {"thermal": 1},
        "energy_saved_j": 9000.0, "energy_saved_j_low": None, "energy_saved_j_high": None,
    },
}  # fmt: skip


@pytest.fixture
def status() -> dict[str, Any]:
    return copy.deepcopy(STATUS)


@pytest.fixture
def snapshot_of() -> Callable[..., Snapshot]:
    def make(status: dict[str, Any] | None, error: str | None = None) -> Snapshot:
        return Snapshot(status, error, 0.004, 0.1, {"answered": 1, "unreachable": 0})

    return make
