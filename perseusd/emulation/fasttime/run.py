"""The closed loop: an emulated job, its GPUs and the daemon's core, all in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from perseus_hooks.events import Hello

from perseusd.core.controller import Controller, job_name
from perseusd.core.jobs.job import Job
from perseusd.core.settings import Settings
from perseusd.emulation.fasttime.clocks import Write
from perseusd.emulation.fasttime.conditions import Conditions
from perseusd.emulation.fasttime.gpu import FastGpu
from perseusd.emulation.fasttime.program import Programs
from perseusd.emulation.fasttime.rank import FastRank
from perseusd.emulation.fasttime.shell import OWNER, Memory, Shell
from perseusd.emulation.fasttime.solver import Solver
from perseusd.emulation.fasttime.training import Setting, Training
from perseusd.emulation.fasttime.truth import FastIteration, ReplicaIteration, full_energy_j
from perseusd.emulation.fasttime.virtual import NS, VirtualTime
from perseusd.emulation.fasttime.wire import Wire
from perseusd.emulation.workloads import Workload
from perseusd.gpus.simulated import SPECS

JOB = "job"
_FIRST_NS = 1_000_000


class FastTime:
    """Runs iterations of a workload under the daemon's core; see `run`.

    microbatches: of an iteration; None takes the workload's.
    memory: what an earlier run's core has remembered; kept up by this one's.
    """

    def __init__(
        self,
        workload: Workload,
        solve: Solver,
        conditions: Conditions,
        settings: Settings | None = None,
        microbatches: int | None = None,
        memory: Memory | None = None,
    ) -> None:
        self.workload, self.conditions = workload, conditions
        self.microbatches = microbatches or workload.microbatches
        self.done: list[FastIteration] = []
        self.time = VirtualTime()
        self.ranks = _ranks(workload, conditions)
        self.shell = Shell(
            self.ranks, SPECS[workload.gpu].name, conditions, settings or Settings(), self.time
        )
        self.shell.solve, self.shell.reclock = solve, self._reclocked
        if memory is not None:
            self.shell.memory = memory
        self._wire = Wire(conditions, self.time, self.shell.deliver)
        self._training = self._trained()
        self._calls: dict[int, list[Callable[[], None]]] = {}
        self._before: list[tuple[float, int]] = []
        self._states: list[str] = []

    def run(self, iterations: int) -> list[FastIteration]:
        """Returns every iteration's truth, `iterations` in all, those of earlier calls included."""
        if not self.done and self.time.iteration < 0:
            self.shell.start()
            self.time.at(_FIRST_NS, self._training.begin)
        while len(self.done) < iterations:
            self.time.step()
        return self.done

    def before(self, iteration: int, call: Callable[[], None]) -> None:
        """`call` when that iteration begins, before anything of it happens."""
        self._calls.setdefault(iteration, []).append(call)

    @property
    def controller(self) -> Controller:
        return self.shell.controller

    @property
    def job(self) -> Job:
        """The first replica's."""
        return next(iter(self.controller.jobs.values()))

    def job_of(self, replica: int) -> Job | None:
        """A replica's job; None while the daemon knows none."""
        hello = next(rank.hello for rank in self.ranks if rank.replica == replica)
        return self.controller.jobs.get(job_name(OWNER, hello))

    @property
    def notices(self) -> list[str]:
        """`ITERATION: text`, as the core would have had them logged."""
        return self.shell.notices

    @property
    def writes(self) -> list[Write]:
        """Every clock write that was done."""
        return self.shell.clocks.writes

    def _trained(self) -> Training:
        workload, conditions = self.workload, self.conditions
        setting = Setting(
            lag_ns=int(workload.communication_s * NS),
            full_ns=int(workload.full_clock_time_s(self.microbatches) * NS),
        )
        programs = Programs(workload, conditions, self.microbatches)
        training = Training(setting, conditions, programs, self.time, self.shell)
        for replica in range(conditions.replicas):
            training.add([r for r in self.ranks if r.replica == replica], self._wire)
        training.begun, training.ended = self._begun, self._ended
        return training

    def _reclocked(self, now: int, rank: FastRank, index: int) -> None:
        self._training.replicas[rank.replica].reclocked(now, rank, index)

    def _begun(self, now: int) -> None:
        self._wire.told = self._training.told
        self._before = self._meters(now)
        self._states = [self._state(replica) for replica in range(self.conditions.replicas)]
        self.shell.begin(now)
        for call in self._calls.pop(self.time.iteration, ()):
            call()

    def _state(self, replica: int) -> str:
        job = self.job_of(replica)
        return "none" if job is None else job.state.value

    def _meters(self, now: int) -> list[tuple[float, int]]:
        """(joules, clock writes) of each replica until now."""
        counts = self.shell.clocks.counts
        found = []
        for replica in self._training.replicas:
            joules = sum(rank.gpu.energy(now) for rank in replica.ranks)
            found.append((joules, sum(counts[rank.index] for rank in replica.ranks)))
        return found

    def _ended(self, now: int, full_time_ns: int) -> None:
        replicas = tuple(self._replica_iterations(now, full_time_ns / NS))
        start_ns = self._training.start_ns
        self.done.append(
            FastIteration(
                number=self.time.iteration,
                state=self._states[0],
                time_s=(now - start_ns) / NS,
                energy_j=sum(r.energy_j for r in replicas),
                writes=sum(r.writes for r in replicas),
                full_time_s=full_time_ns / NS,
                full_energy_j=sum(r.full_energy_j for r in replicas),
                start_s=start_ns / NS,
                told=self._training.told,
                evaluation=self._training.evaluation,
                replicas=replicas,
            )
        )

    def _replica_iterations(self, now: int, full_time_s: float) -> list[ReplicaIteration]:
        start_ns = self._training.start_ns
        found = []
        for number, after in enumerate(self._meters(now)):
            replica, before = self._training.replicas[number], self._before[number]
            found.append(
                ReplicaIteration(
                    state=self._states[number],
                    makespan_s=(max(r.free_ns for r in replica.ranks) - start_ns) / NS,
                    energy_j=after[0] - before[0],
                    writes=after[1] - before[1],
                    full_makespan_s=(replica.full_end_ns - start_ns) / NS,
                    full_energy_j=full_energy_j(replica.ranks, full_time_s),
                )
            )
        return found


def _ranks(workload: Workload, conditions: Conditions) -> list[FastRank]:
    """Of all replicas, one process and one GPU a stage."""
    return [
        _rank(workload, conditions, replica, stage)
        for replica in range(conditions.replicas)
        for stage in range(workload.stages)
    ]


def _rank(workload: Workload, conditions: Conditions, replica: int, stage: int) -> FastRank:
    index = replica * workload.stages + stage
    # The daemon draws reference iterations by a job's name.
    name = f"{JOB}-{conditions.seed}" if conditions.seed else JOB
    hello = Hello(
        job=name, rank=index, world_size=workload.stages * conditions.replicas, local_rank=index,
        stage=stage, stages=workload.stages, replica=replica, replicas=conditions.replicas,
        schedule="1f1b", gpus=(f"GPU-{index}",), time_source="emulated", uses_cuda=False,
        slowdown_budget=None, hostname="fast",
    )  # fmt: skip
    return FastRank(
        replica=replica,
        rank=stage,
        index=index,
        gpu=FastGpu(workload.clocks_mhz, workload.blocking_power_w),
        curves={i: curve for (of, i), curve in workload.curves.items() if of == stage},
        hello=hello,
        noise=Random(f"{conditions.seed} {workload.name} noise {index}"),
    )
