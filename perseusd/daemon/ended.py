"""The last jobs that ended: short ones are over before anybody asks for the status."""

from __future__ import annotations

import time
from collections.abc import Container
from typing import Any

KEPT = 8


class EndedJobs:
    """The newest KEPT, each name once."""

    def __init__(self) -> None:
        self._jobs: dict[str, tuple[int, float]] = {}

    def add(self, job: str, iteration: int) -> None:
        """iteration: its latest, -1 where none was seen."""
        self._jobs.pop(job, None)
        self._jobs[job] = iteration, time.monotonic()
        while len(self._jobs) > KEPT:
            del self._jobs[next(iter(self._jobs))]

    def as_json(self, running: Container[str]) -> list[dict[str, Any]]:
        """Newest first, without those that have come back."""
        now_s = time.monotonic()
        return [
            {"id": job, "iteration": iteration, "ended_s_ago": round(now_s - ended_s, 1)}
            for job, (iteration, ended_s) in reversed(self._jobs.items())
            if job not in running
        ]
