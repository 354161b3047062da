"""Every metric there is, in one table. docs/metrics.md is made from it (scripts/metrics)."""

from __future__ import annotations

from typing import Final

from perseusd.exporter.metric import Metric
from perseusd.exporter.of_daemon import EXPORTER, LIFE, WORK
from perseusd.exporter.of_gpus import GPUS
from perseusd.exporter.of_jobs import ALL_JOBS, EACH_JOB, JOULES

GROUPS: Final[dict[str, tuple[Metric, ...]]] = {
    "The exporter, and whether the daemon answers it": EXPORTER,
    "The daemon and its processes": LIFE,
    "What it hears, decides and writes": WORK,
    "Each GPU": GPUS,
    "All jobs": ALL_JOBS,
    "Each job": EACH_JOB,
    "Energy saved": JOULES,
}

METRICS: Final[tuple[Metric, ...]] = tuple(m for group in GROUPS.values() for m in group)
