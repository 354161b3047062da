"""The status object: what a user may see of the daemon, its GPUs and its jobs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from perseusd import __version__
from perseusd.core.controller import Controller
from perseusd.core.jobs.job import Job
from perseusd.core.jobs.why import code_of
from perseusd.core.savings.samples import Estimate
from perseusd.core.stragglers import Straggler, Watch
from perseusd.daemon.actuator import Actuator
from perseusd.daemon.counters import Counters
from perseusd.daemon.custody import Custody
from perseusd.daemon.ended import EndedJobs
from perseusd.daemon.grip import Grip
from perseusd.daemon.intake import Intake
from perseusd.daemon.obedience import Obedience
from perseusd.daemon.planning import Planner
from perseusd.daemon.sampler import Sampler, reason_names
from perseusd.gpus.base import Gpu

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

MOST_HISTORY = 20
"""Stragglers that are over; the log has them all."""


class StatusView:
    """Makes the status object from the daemon's parts; changes none of them."""

    def __init__(
        self,
        controller: Controller,
        sampler: Sampler,
        actuator: Actuator,
        intake: Intake,
        obedience: Obedience,
        planner: Planner,
        counters: Counters,
        custody: Custody,
        outlook: Callable[[], Mapping[str, Any]],
        grip: Grip,
    ) -> None:
        """outlook: what a restart would bring, of the configuration."""
        self._controller = controller
        self._sampler = sampler
        self._actuator = actuator
        self._intake = intake
        self._obedience = obedience
        self._planner = planner
        self._counters = counters
        self._custody = custody
        self._outlook = outlook
        self._grip = grip
        self.ended = EndedJobs()
        self._started_s = time.monotonic()
        self._started_unix_s = round(time.time(), 3)

    def make(self) -> dict[str, Any]:
        """One JSON-ready object; the contract is in docs/status.md."""
        return {
            "schema_version": 1,
            "daemon": self._daemon(),
            "gpus": [self._gpu(gpu) for gpu in self._sampler.gpus],
            "jobs": [self._job(job) for job in self._controller.jobs.values()],
            "ended": self.ended.as_json(self._controller.jobs),
            "counters": self._counters.as_json(
                [job.ledger.savings().energy_saved_j for job in self._controller.jobs.values()]
            ),
        }

    def _daemon(self) -> dict[str, Any]:
        observe = self._controller.settings.observe
        now = time.monotonic()
        return {
            "version": __version__,
            "uptime_s": round(now - self._started_s, 3),
            "started_s": self._started_unix_s,
            "mode": "observe" if observe else "act",
            "clock_process": "alive" if self._actuator.alive else "dead",
            "driver": self._grip.hold.value,
            "driver_trouble": self._grip.trouble,
            "missing_gpus": [
                {"index": index, "why": why} for index, why in self._grip.missing.items()
            ],
            "gpu_use_unknown": self._grip.blind,
            "released": dict(self._custody.released),
            "emulated": any(gpu.info.emulated for gpu in self._sampler.gpus),
            "configuration": self._outlook(),
            "planner": "ready" if self._planner.prepared else "starting",
            "planner_restarts": self._planner.given_up,
            "clients": self._intake.clients,
            "client_processes": self._intake.leases.processes,
            "cpu_s": round(time.process_time(), 6),
            "resident_bytes": _resident_bytes(),
            "refused": [
                {
                    "code": r.code,
                    "uid": uid,
                    "reason": r.reason,
                    "count": r.count,
                    "last_s_ago": round(now - r.last_s, 1),
                    "pid": r.pid,
                    "process_runs": _runs(r.pid),
                }
                for (uid, _), r in self._intake.refused.items()
            ],
        }

    def _gpu(self, gpu: Gpu) -> dict[str, Any]:
        view = self._sampler.views[gpu.info.uuid]
        writes = self._counters.writes
        withheld = self._controller.withheld.get(view.uuid)
        return {
            "uuid": view.uuid,
            "index": gpu.info.index,
            "name": gpu.info.name,
            "clock_mhz": view.clock_mhz,
            "requested_mhz": self._actuator.requested[view.uuid],
            "power_w": view.power_w,
            "energy_j": view.energy_j,
            "holder": self._controller.holder(view.uuid),
            "standing_mhz": self._standing(gpu),
            "state": self._custody.state_of(view.uuid),
            "agrees": self._custody.agrees(view.uuid),
            "reasons": sorted(reason_names(view.reasons)),
            "follows_request": self._obedience.follows(view.uuid),
            "emulated": gpu.info.emulated,
            "mig": gpu.info.mig_enabled,
            "error": view.error,
            "readings": view.readings,
            "readings_failed": view.failed,
            "clock_writes": writes.done[view.uuid],
            "clock_writes_failed": writes.failed[view.uuid],
            "withheld": withheld,
            "withheld_code": code_of(withheld or ""),
        }

    def _standing(self, gpu: Gpu) -> int | None:
        """The site's own lock: what is full clock here where the GPU could run faster."""
        facts, clocks = self._controller.gpus[gpu.info.uuid], gpu.info.supported_clocks_mhz
        lower = facts.supported_mhz and facts.top_mhz < clocks[-1]
        return facts.top_mhz if lower else None

    def _job(self, job: Job) -> dict[str, Any]:
        last = job.ledger.last
        sources = sorted({m.hello.time_source for m in job.roster.members.values()})
        plan = job.plan_in_force
        replica = min((m.hello.replica or 0 for m in job.roster.members.values()), default=0)
        watch = self._controller.replicas[job.first_replica].watch
        return {
            "id": job.name,
            "replica": replica,
            "state": job.state.value,
            "ranks": len(job.roster.members),
            "expected_ranks": job.roster.expected,
            "missing_ranks": job.roster.missing_stages(),
            "iteration": job.iteration,
            "iteration_time_s": last.time_s if last else None,
            "deadline_s": job.deadline_s,
            "critical_path": [
                {"replica": replica, "stage": stage, "share": round(share, 4)}
                for stage, share in job.critical_path()
            ],
            "slack": [
                {"replica": replica, "stage": stage, "share": _rounded(share)}
                for stage, share in enumerate(job.slack())
            ],
            "stragglers": _stragglers(job, watch),
            "straggler_history": _history(watch),
            "straggler_to_come": _to_come(job),
            **_savings(job),
            "predicted_saving": _predicted(job),
            "no_prediction": job.no_prediction or None,
            "learning": _learning(job),
            "why": job.reason,
            "why_code": code_of(job.reason),
            "time_source": "+".join(sources),
            "states": [{"state": s.value, "since_iteration": n} for s, n in job.states],
            "plan": {"clocks": [list(c) for c in plan.plan.clocks]} if plan else None,
        }


def _runs(pid: int) -> bool:
    """Whether there is such a process, of whichever user."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _resident_bytes() -> int | None:
    """Memory that this process has in use; None where the system does not tell."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return None
    return int(pages) * PAGE_BYTES


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)


def _stragglers(job: Job, watch: Watch) -> list[dict[str, Any]]:
    """Those of the whole job that last, and what was announced."""
    found = [asdict(straggler) for straggler in watch.current()]
    word = job.reaction.announced
    if word.factor is not None:
        since = word.since_iteration
        announced = Straggler(None, None, None, word.factor, since, None, False, "announced")
        found.append(asdict(announced))
    return found


def _history(watch: Watch) -> list[dict[str, Any]]:
    """Those that are over, oldest first."""
    over = [s for s in watch.history() if s.until_iteration is not None]
    return [asdict(straggler) for straggler in over[-MOST_HISTORY:]]


def _to_come(job: Job) -> dict[str, Any] | None:
    """Announced, and not begun yet."""
    coming = job.reaction.announced.coming
    if coming is None:
        return None
    factor, starts_ns = coming
    starts_in_s = max(0.0, (starts_ns - time.monotonic_ns()) * 1e-9)
    return {"factor": factor, "starts_in_s": round(starts_in_s, 1)}


def _savings(job: Job) -> dict[str, Any]:
    savings = job.ledger.savings()
    joules = savings.energy_saved_j
    return {
        **_interval("saving", savings.saving),
        **_interval("slowdown", savings.slowdown),
        "energy_saved_j": 0.0 if joules is None else round(joules.value, 3),
        "energy_saved_j_low": None if joules is None else round(joules.low, 3),
        "energy_saved_j_high": None if joules is None else round(joules.high, 3),
        "reference_iterations": savings.references,
        "reference_cost": savings.reference_cost,
    }


def _interval(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    if estimate is None:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"))
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _predicted(job: Job) -> dict[str, Any] | None:
    forecast = job.predicted
    if forecast is None:
        return None
    return {
        "saving": forecast.saving,
        "saving_low": forecast.low,
        "saving_high": forecast.high,
        "source": forecast.source,
        "iterations": forecast.iterations,
    }


def _learning(job: Job) -> dict[str, Any] | None:
    progress = job.progress()
    if progress is None:
        return None
    remembered, why = job.recollection
    return {
        "iterations": progress.trials,
        "lowest_mhz": progress.lowest_mhz,
        "uncertain": [
            {
                "stage": doubt.kind.rank,
                "chunk": doubt.kind.chunk,
                "instruction": doubt.kind.instruction,
                "time_error": round(doubt.time, 4),
                "energy_error": round(doubt.energy, 4),
            }
            for doubt in progress.doubts
        ],
        "remembered": remembered,
        "remembered_why": why or None,
    }
