"""The replicas of one job on this node: what is seen of each, and what it asks of the others.

All replicas of a job wait for each other at every iteration's end. So one that straggles sets the
others' deadline; and it is known on this node before its slowness has cost anything but time.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

from perseusd.core.jobs.job import Job
from perseusd.core.jobs.reaction import NOBODY, Others
from perseusd.core.stragglers import Observation, Straggler, Watch

KEPT = 8
"""Iterations of each replica whose makespans are kept."""

NEWEST = 4
"""Of a straggler's, that tell what it takes now."""

RECOVERED = 0.02
"""A straggler's iteration that is shorter than those before it by this share is not noise."""

SIGMAS = 3.0

ASSUMED_NOISE = 0.005
"""Relative, of an iteration's makespan, while too few are kept to tell."""

MOST_NOISE = 0.015
"""More is a change, and not noise."""

STALE = 2
"""Iterations of the others after which one that reports none is not waited for on its old word."""


@dataclass
class Replicas:
    """One watch for all replicas of a job."""

    jobs: dict[int, Job] = field(default_factory=dict)
    watch: Watch = field(default_factory=Watch)
    _makespans: dict[int, deque[tuple[int, float]]] = field(default_factory=dict)
    _unheard: dict[int, int] = field(default_factory=dict)
    """By replica, the others' iterations since its last."""

    def add(self, job: Job) -> None:
        if self.jobs.get(job.replica) is not job:
            self.jobs[job.replica] = job
            self.forget(job.replica)

    def remove(self, job: Job) -> None:
        if self.jobs.pop(job.replica, None) is not None:
            self.forget(job.replica)
            self._react()

    def renew(self, replica: int) -> None:
        """That replica is another one now, and nobody waits for what it was."""
        self.forget(replica)
        self._react()

    def forget(self, replica: int) -> None:
        """What that replica was tells nothing any more."""
        self.watch.forget(replica)
        self._makespans.pop(replica, None)
        self._unheard.pop(replica, None)

    def observe(self, observation: Observation, makespan_s: float) -> list[Straggler]:
        """One replica has finished an iteration; returns what has begun, changed or ended."""
        kept = self._makespans.setdefault(observation.replica, deque(maxlen=KEPT))
        kept.append((observation.number, makespan_s))
        for replica in self._makespans:
            self._unheard[replica] = self._unheard.get(replica, 0) + 1
        self._unheard[observation.replica] = 0
        changes = self.watch.observe(observation)
        self._react()
        return changes

    def _react(self) -> None:
        slow: dict[int, set[int]] = {}
        since: dict[int, int] = {}
        for straggler in self.watch.current():
            if (replica := straggler.replica) is None:
                continue
            ranks = slow.setdefault(replica, set())
            if straggler.stage is not None and straggler.cause != "communication":
                ranks.add(straggler.stage)
            begun = straggler.since_iteration
            since[replica] = min(since.get(replica, begun), begun)
        taking = {r: self._taking(r, begun) for r, begun in since.items()}
        for replica, job in self.jobs.items():
            if replica in slow and not slow[replica]:  # the whole of it
                job.slowed(range(job.roster.stages or 0))
            else:
                job.slowed(slow.get(replica, ()))
            others = [t for r, t in taking.items() if r != replica and t is not None]
            elsewhere_s, noise = max(others, default=(None, 0.0))
            job.expect(elsewhere_s, noise, self._but(replica))

    def _but(self, replica: int) -> Others:
        others = [[s for _, s in k] for r, k in self._makespans.items() if r != replica and k]
        if not others:
            return NOBODY
        return Others(max(fmean(took) for took in others), max(max(t[-2:]) for t in others))

    def _taking(self, replica: int, since: int) -> tuple[float, float] | None:
        """A straggler's makespan, and its relative noise: of its newest since it began, or of its
        last alone where that is clearly less. None where none is known.
        """
        took = [s for number, s in self._makespans.get(replica, ()) if number >= since]
        if not took or self._unheard.get(replica, 0) > STALE * max(1, len(self.jobs) - 1):
            return None
        *before, last = took[-NEWEST:]
        noise = _noise(before)
        if before and last < fmean(before) * (1 - max(RECOVERED, SIGMAS * noise)):
            return last, noise
        return fmean([*before, last]), noise / math.sqrt(len(before) + 1)


def _noise(took: Sequence[float]) -> float:
    """Relative, of one of them."""
    if len(took) < NEWEST - 1 or (mean := fmean(took)) <= 0:
        return ASSUMED_NOISE
    return min(stdev(took) / mean, MOST_NOISE)
