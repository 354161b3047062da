"""What the core asks for is done, and it is told what became of its clock writes."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from perseusd.core.actions import (
    Action,
    Discard,
    Forget,
    JobEnded,
    Notice,
    Recall,
    Refuse,
    Remember,
    RequestPlan,
    SetClock,
)
from perseusd.core.controller import Controller
from perseusd.daemon.actuator import Actuator, Failed
from perseusd.daemon.counters import Counters
from perseusd.daemon.ended import EndedJobs
from perseusd.daemon.intake import Intake
from perseusd.daemon.journal import of_notice
from perseusd.daemon.keeper import CurveKeeper
from perseusd.daemon.obedience import Obedience
from perseusd.daemon.planning import Planner
from perseusd.daemon.straggler_log import StragglerLog
from perseusd.logs import MessageId, fields

log = logging.getLogger(__name__)


@dataclass
class Deeds:
    """The parts that act for the core, and `do`, which takes its actions to them."""

    controller: Controller
    actuator: Actuator
    planner: Planner
    intake: Intake
    keeper: CurveKeeper
    obedience: Obedience
    counters: Counters
    ended: EndedJobs
    _stragglers: StragglerLog = field(default_factory=StragglerLog)
    _failures: dict[str, str] = field(default_factory=dict)
    """By GPU, the failed write that was logged last, until one works."""

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case SetClock(uuid, clock_mhz):
                    if self.actuator.set_clock(uuid, clock_mhz):
                        self.counters.loop.decided()
                case RequestPlan():
                    self.counters.plans.request(action.request)
                    self.planner.request(action)
                case Refuse(client, code, reason):
                    if (peer := self.intake.peer(client)) is not None:
                        self.intake.refuse(peer, code, reason)
                        self.intake.forget(client)
                case Recall() | Remember() | Discard():
                    self.keeper.act(action)
                case Forget(client):
                    self.intake.forget(client)
                case JobEnded():
                    self._job_ended(action)
                case Notice(job, text, straggler):
                    self.counters.jobs.notice(action)
                    if straggler is None or self._stragglers.wants(job, straggler):
                        log.info("job %s: %s", job, text, extra=of_notice(action))

    def _job_ended(self, ended: JobEnded) -> None:
        job, iteration = ended.job, ended.iteration
        seen = f"in iteration {iteration}" if iteration >= 0 else "and no iteration was seen"
        log.info("job %s: ended %s", job, seen, extra=fields(MessageId.JOB_ENDED, job=job))
        self.counters.jobs.end(ended)
        self.ended.add(job, iteration)
        self._stragglers.forget(job)

    def take_results(self) -> None:
        """What became of clock writes: a job whose clocks could not be written lets go of them."""
        for result in self.actuator.results():
            if not isinstance(result, Failed):
                self.controller.written(*result)
                self.obedience.written(result.uuid, result.clock_mhz, result.end_ns)
                self._failures.pop(result.uuid, None)
            elif result.uuid is None:
                log.error("%s", result.why)
                self.do(self.controller.release_all(result.why))
            else:
                self._failed(result.uuid, result.why)

    def _failed(self, uuid: str, why: str) -> None:
        if self._failures.get(uuid) != why:  # it is tried again and again
            log.error("%s", why, extra=fields(MessageId.WRITE_FAILED, gpu=uuid))
        self._failures[uuid] = why
        if uuid not in self.controller.withheld:
            self.do(self.controller.release_gpu(uuid, why))
