"""The closed loop on emulated GPUs: a job that trains, a daemon that is told nothing about it.

Everything runs as for real: `perseusd run` as a process of its own, a training process a stage,
their hooks and sockets. What is emulated is the GPUs, and how long work takes on them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from perseusd.core.model import Plan, Problem
from perseusd.core.planner import evaluate, lower_bound
from perseusd.emulation.coordinator import Straggler
from perseusd.emulation.daemon import DaemonProcess
from perseusd.emulation.job import EmulatedJob, JobOptions
from perseusd.emulation.picture import picture
from perseusd.emulation.progress import Progress, Snapshot, StageReading
from perseusd.emulation.report import Bounds, DemoReport, Setting, States, report, state_of
from perseusd.emulation.workloads import Workload
from perseusd.errors import DaemonUnreachableError, PerseusError, UsageError
from perseusd.gpus.simulated import SPECS, SimulatedNode, create_node

logger = logging.getLogger(__name__)

NODE_FILE = "simulated-gpus"
JOB = "demo"
_POLL_S = 0.25
_SILENCE_S = 10.0
_ENOUGH_HOLD_ITERATIONS = 45
_AFTER_STRAGGLER = 12
_POWER_ITERATIONS = 1


@dataclass(frozen=True)
class DemoOptions:
    """One demo.

    runtime_dir: None takes a temporary one. picture: None draws none.
    profile: the file that the workload was read from; None for a named one.
    """

    workload: Workload
    microbatches: int
    straggler: Straggler | None = None
    noise: float = 0.01
    seconds: float = 225.0
    seed: int = 0
    runtime_dir: Path | None = None
    picture: Path | None = None
    profile: Path | None = None


def run_demo(options: DemoOptions, progress: Progress) -> DemoReport:
    """Run until enough is measured or the time is over, and stop everything, whatever happens.

    Raises PerseusError where the daemon or the job fails, UsageError where the options do.
    """
    workload = options.workload
    if options.picture is not None:
        _check_picture(options.picture)
    with _runtime_dir(options.runtime_dir) as runtime_dir:
        spec = replace(SPECS[workload.gpu], blocking_power_w=workload.blocking_power_w)
        with contextlib.closing(
            create_node(runtime_dir / NODE_FILE, spec, workload.stages)
        ) as node:
            with DaemonProcess(runtime_dir, workload.stages) as daemon:
                job = EmulatedJob(
                    workload, runtime_dir / NODE_FILE, runtime_dir, _job_options(options, daemon)
                )
                with job, progress:
                    watch = _Watch(options, daemon, job, node)
                    watch.run(progress)
            _check_unlocked(node)
    return _reported(options, watch, job)


def _reported(options: DemoOptions, watch: _Watch, job: EmulatedJob) -> DemoReport:
    workload, records = options.workload, job.iterations()
    setting = Setting(
        workload.name,
        workload.gpu,
        workload.stages,
        options.microbatches,
        workload.blocking_power_w,
        options.straggler,
        None if options.profile is None else str(options.profile),
    )
    bounds = bounds_of(workload, options.microbatches, watch.plan)
    found = report(setting, records, watch.states, bounds, watch.announced)
    if found.slowdown is not None:
        as_run = bounds_of(workload, options.microbatches, None, max(0.0, found.slowdown))
        found = dataclasses.replace(found, bound_saving_as_run=as_run.saving)
    if options.picture is not None:
        usual = [r for r in records if r.iteration not in watch.announced]
        drawn = picture(found, workload, usual, watch.states)
        if drawn is not None:
            _write_picture(options.picture, drawn)
    return found


def _write_picture(path: Path, drawn: str) -> None:
    """What was measured is worth more than its picture: a disk that is full now ends nothing."""
    try:
        path.write_text(drawn, encoding="utf-8")
    except OSError as error:
        logger.warning("the picture %s could not be written: %s", path, error.strerror)


def bounds_of(
    workload: Workload, microbatches: int, plan: Plan | None, slowdown: float = 0.0
) -> Bounds:
    """What could be saved on the true curves in the time that full clocks take, without noise.

    slowdown: in so much more than that time.

    plan: the one whose clock changes bound `saving_writes`; None leaves that out.
    """
    problem = Problem(
        pipeline=workload.pipeline(microbatches),
        curves=workload.problem_curves(),
        blocking_power_w=(workload.blocking_power_w,) * workload.stages,
        deadline_ratio=1 + slowdown,
    )
    full = Plan(tuple((None,) * len(order) for order in problem.pipeline.orders))
    full_j = evaluate(dataclasses.replace(problem, deadline_ratio=1.0), full).energy_j
    return Bounds(
        saving=1 - lower_bound(problem) / full_j,
        saving_writes=None if plan is None else 1 - lower_bound(problem, plan) / full_j,
    )


class _Watch:
    """Asks the daemon and the job how they are, several times a second, and remembers."""

    def __init__(
        self, options: DemoOptions, daemon: DaemonProcess, job: EmulatedJob, node: SimulatedNode
    ) -> None:
        self._options = options
        self._daemon = daemon
        self._job = job
        self._node = node
        self._start_s = time.monotonic()
        self._heard_s = self._start_s
        self._status: Mapping[str, Any] = {}
        self._listed_since: int | None = None
        self.states: States = ()
        self.plan: Plan | None = None
        self.announced: set[int] = set()
        """Iterations with a straggler in the daemon's status, whoever announced it, each with the
        next one, whose clocks may still follow it."""

    def run(self, progress: Progress) -> None:
        while not self._finished():
            self._job.check()
            self._daemon.check()
            self._ask()
            progress.show(self._snapshot())
            time.sleep(_POLL_S)

    def _finished(self) -> bool:
        if time.monotonic() - self._start_s >= self._options.seconds:
            return True
        calm = [
            r.iteration
            for r in self._job.iterations()
            if not r.straggling
            and r.iteration not in self.announced
            and state_of(r.iteration, self.states) == "hold"
        ]
        straggler = self._options.straggler
        if straggler is not None and (not calm or max(calm) < straggler.end + _AFTER_STRAGGLER):
            return False
        return len(calm) >= _ENOUGH_HOLD_ITERATIONS

    def _ask(self) -> None:
        running = self._running()
        try:
            status = self._daemon.status()
        except DaemonUnreachableError:
            if time.monotonic() - self._heard_s > _SILENCE_S:
                raise
            return
        self._heard_s = time.monotonic()
        self._status = next((job for job in status.get("jobs", ()) if _ours(job)), {})
        states = self._status.get("states") or ()
        if states:
            self.states = tuple((s["state"], s["since_iteration"]) for s in states)
        self._note_stragglers(running)
        plan = self._status.get("plan")
        records = self._job.iterations()
        if (
            plan
            and self._status.get("state") == "hold"
            and running not in self.announced
            and not (records and records[-1].straggling)
        ):
            self.plan = Plan(tuple(tuple(clocks) for clocks in plan["clocks"]))

    def _running(self) -> int:
        """The iteration that runs now."""
        records = self._job.iterations()
        return records[-1].iteration + 1 if records else 0

    def _note_stragglers(self, running: int) -> None:
        if not self._status.get("stragglers"):
            self._listed_since = None
            return
        since = running if self._listed_since is None else self._listed_since
        self.announced.update(range(since, running + 2))
        self._listed_since = running

    def _snapshot(self) -> Snapshot:
        records = self._job.iterations()
        last = records[-1] if records else None
        power_w = None
        if len(records) > _POWER_ITERATIONS:
            before = records[-1 - _POWER_ITERATIONS]
            grown_j = records[-1].total_energy_j - before.total_energy_j
            power_w = grown_j / ((records[-1].end_ns - before.end_ns) / 1e9)
        return Snapshot(
            elapsed_s=time.monotonic() - self._start_s,
            total_s=self._options.seconds,
            state=self._status.get("state", "not seen yet"),
            iteration=last.iteration + 1 if last else 0,
            iteration_time_s=last.time_s if last else None,
            power_w=power_w,
            saving=self._status.get("saving"),
            slowdown=self._status.get("slowdown"),
            straggling=bool(self._status.get("stragglers") or (last and last.straggling)),
            why=self._status.get("why"),
            stages=[
                StageReading(gpu.clock_mhz(), gpu.locked_mhz(), gpu.power_w())
                for gpu in self._node.gpus
            ],
        )


def _ours(job: Mapping[str, Any]) -> bool:
    """The daemon puts the user's name before the job's."""
    return str(job.get("id")).split(":", 1)[-1] == JOB


def _job_options(options: DemoOptions, daemon: DaemonProcess) -> JobOptions:
    def announce(straggling: bool) -> None:
        request: dict[str, Any] = {"command": "straggler_end", "job": JOB}
        if straggling and options.straggler is not None:
            request |= {"command": "straggler_announce", "factor": options.straggler.factor}
        try:
            daemon.control(request)
        except PerseusError as error:
            logger.warning("the straggler could not be announced: %s", error)

    return JobOptions(
        microbatches=options.microbatches,
        noise=options.noise,
        seed=options.seed,
        straggler=options.straggler,
        job=JOB,
        on_straggler=announce,
    )


@contextlib.contextmanager
def _runtime_dir(given: Path | None) -> Iterator[Path]:
    if given is None:
        with tempfile.TemporaryDirectory(prefix="perseusd-demo-") as folder:
            yield Path(folder)
        return
    try:
        given.mkdir(parents=True, exist_ok=True)
        in_use = (given / NODE_FILE).exists()
        _try_writing(given)
    except OSError as error:
        raise UsageError(
            f"--runtime-dir {given}: cannot be made or written ({error.strerror}): give a "
            "directory that this user may write, or none for a temporary one"
        ) from None
    if in_use:
        raise UsageError(
            f"{given} has simulated GPUs already, perhaps in use: give the demo a new directory"
        )
    yield given


def _check_picture(path: Path) -> None:
    """Before the minutes that the demo takes, not after them."""
    try:
        if path.exists():
            with path.open("ab"):
                return
        _try_writing(path.parent)
    except OSError as error:
        raise UsageError(
            f"--picture {path}: cannot be written ({error.strerror}): give a file in a directory "
            "that exists and that this user may write"
        ) from None


def _try_writing(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder):
        pass


def _check_unlocked(node: SimulatedNode) -> None:
    locked = [gpu.info.index for gpu in node.gpus if gpu.locked_mhz() is not None]
    if locked:
        names = ", ".join(map(str, locked))
        raise PerseusError(f"perseusd has stopped and left the clocks of GPU {names} locked")
