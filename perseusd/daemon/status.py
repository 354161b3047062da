"""The status object: what a user may see of the daemon, its GPUs and its jobs."""

from __future__ import annotations

import time
from typing import Any

from perseusd import __version__
from perseusd.core.controller import Controller
from perseusd.core.job import Job
from perseusd.daemon.actuator import Actuator
from perseusd.daemon.intake import Intake
from perseusd.daemon.sampler import GpuView, Sampler
from perseusd.gpus.base import ClockReason, Gpu

STALE_S = 5.0
"""A GPU whose last reading is older is shown as stuck."""


class StatusView:
    """Makes the status object from the daemon's parts; changes none of them."""

    def __init__(
        self, controller: Controller, sampler: Sampler, actuator: Actuator, intake: Intake
    ) -> None:
        self._controller = controller
        self._sampler = sampler
        self._actuator = actuator
        self._intake = intake
        self._started_s = time.monotonic()

    def make(self) -> dict[str, Any]:
        """One JSON-ready object; the contract is in docs/status.md."""
        return {
            "schema_version": 1,
            "daemon": self._daemon(),
            "gpus": [self._gpu(gpu) for gpu in self._sampler.gpus],
            "jobs": [self._job(job) for job in self._controller.jobs.values()],
        }

    def _daemon(self) -> dict[str, Any]:
        observe = self._controller.settings.observe
        now = time.monotonic()
        return {
            "version": __version__,
            "uptime_s": round(now - self._started_s, 3),
            "mode": "observe" if observe else "act",
            "clock_process": "alive" if self._actuator.alive else "dead",
            "emulated": any(gpu.info.emulated for gpu in self._sampler.gpus),
            "refused": [
                {
                    "code": r.code,
                    "reason": r.reason,
                    "count": r.count,
                    "last_s_ago": round(now - r.last_s, 1),
                }
                for r in self._intake.refused.values()
            ],
        }

    def _gpu(self, gpu: Gpu) -> dict[str, Any]:
        view = self._sampler.views[gpu.info.uuid]
        return {
            "uuid": view.uuid,
            "name": gpu.info.name,
            "clock_mhz": view.clock_mhz,
            "requested_mhz": self._actuator.requested[view.uuid],
            "power_w": view.power_w,
            "energy_j": view.energy_j,
            "holder": self._controller.holder(view.uuid),
            "state": _state(view),
            "reasons": [str(r.name).lower() for r in ClockReason if r and r in view.reasons],
            "emulated": gpu.info.emulated,
            "mig": gpu.info.mig_enabled,
            "error": view.error,
        }

    def _job(self, job: Job) -> dict[str, Any]:
        saving, slowdown = job.ledger.saving(), job.ledger.slowdown()
        last = job.ledger.last
        sources = sorted({m.hello.time_source for m in job.roster.members.values()})
        plan = job.plan_in_force
        replica = min((m.hello.replica or 0 for m in job.roster.members.values()), default=0)
        return {
            "id": job.name,
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
            "stragglers": _stragglers(job),
            "saving": saving.value if saving else None,
            "saving_low": saving.low if saving else None,
            "saving_high": saving.high if saving else None,
            "slowdown": slowdown.value if slowdown else None,
            "slowdown_low": slowdown.low if slowdown else None,
            "slowdown_high": slowdown.high if slowdown else None,
            "energy_saved_j": round(job.ledger.energy_saved_j, 3),
            "why": job.reason,
            "time_source": "+".join(sources),
            "states": [{"state": s.value, "since_iteration": n} for s, n in job.states],
            "plan": {"clocks": [list(c) for c in plan.plan.clocks]} if plan else None,
        }


def _state(view: GpuView) -> str:
    if view.error is not None:
        return "failed"
    if not view.read_s or time.monotonic() - view.read_s > STALE_S:
        return "stuck"
    return "ok"


def _stragglers(job: Job) -> list[dict[str, Any]]:
    if job.straggler.factor is None:
        return []
    return [{"replica": None, "factor": job.straggler.factor, "cause": "announced"}]
