"""All jobs of a node: events and the time in, actions out.

Clients are known by an opaque string that the shell derives from the kernel's word for who sent a
message. A client's lease on its GPUs begins with its hello and ends when the shell says that it is
gone. One GPU belongs to one job; processes of the same job may share it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import TypeVar

from perseus_hooks.events import Goodbye, Hello, StageEnd, StageStart

from perseusd.core.actions import Action, Forget, JobEnded, Notice, Refuse, SetClock
from perseusd.core.jobs.job import Job
from perseusd.core.jobs.replicas import Replicas
from perseusd.core.jobs.roster import Member
from perseusd.core.learned.knowledge import GpuFacts
from perseusd.core.model import PlanResult
from perseusd.core.refusals import gpu_held, rank_taken, unknown_gpu
from perseusd.core.settings import Settings
from perseusd.core.stragglers import Straggler

T = TypeVar("T")

OWN_ERROR = "perseusd met an error of its own"

REQUESTS_OF_A_JOB = 1_000_000
"""Plans that a job may ask for before its requests' numbers could be those of the next job."""


@dataclass
class Controller:
    """Decides for every job on this node; does no I/O."""

    settings: Settings
    gpus: Mapping[str, GpuFacts]
    jobs: dict[str, Job] = field(default_factory=dict)
    urgent: Callable[[list[Action]], None] | None = None
    """Takes an event's clock writes before what the event tells is worked out; None: they are
    returned with the rest."""
    patient: bool = False
    """Whether ticks come so soon, and events between them, that what nothing waits for is worked
    out a piece at each; else it is at once."""
    writable: bool = True
    """Whether clocks can be written now; jobs stay in baseline while they cannot."""
    withheld: dict[str, str] = field(default_factory=dict)
    """GPUs and jobs whose clocks stay full, and why, in words: see `withhold`."""
    replicas: dict[str, Replicas] = field(default_factory=dict)
    """By job, the name of its first replica."""
    errors: list[Exception] = field(default_factory=list)
    """Of ours, over what was due; whoever logs them takes them."""
    new_job: Callable[[str, Settings, Mapping[str, GpuFacts], int], Job] = Job
    """What looks after a replica: (name, settings, GPUs, replica)."""
    _created: int = 0
    """Jobs so far."""
    _clients: dict[str, str] = field(default_factory=dict)
    _holders: dict[str, str] = field(default_factory=dict)

    def hello(self, client: str, owner: str, hello: Hello, process: int = 0) -> list[Action]:
        """A client introduces itself. `owner` is its user, so that names of jobs cannot clash.

        process: which connections are one process, 0 where that is not known: a rank that comes
        back on another connection takes its own place.
        """
        name = job_name(owner, hello)
        known = self._clients.get(client)
        actions: list[Action] = []
        if known is not None and known != name:
            actions += self._leave(client, "joined another job")
        if (before := self._own_place(client, name, hello, process)) is not None:
            actions += [*self._leave(before, "came back on another connection"), Forget(before)]
        if refusal := self._refusal(client, name, hello):
            return [*actions, *self._leave(client, "said a hello that was refused"), refusal]
        gpus = tuple(self._resolve(g) for g in hello.gpus)
        job = self.jobs.get(name)
        if job is None:
            job = self.new_job(name, self.settings, self.gpus, hello.replica or 0)
            self.jobs[name] = job
            self._created += 1
            job.first_request = self._created * REQUESTS_OF_A_JOB
            job.patient = self.patient
            first = job.first_replica = job_name(owner, replace(hello, replica=0))
            self.replicas.setdefault(first, Replicas()).add(job)
        self._clients[client] = name
        for uuid in gpus:
            self._holders[uuid] = name
        job.join(Member(client, hello, gpus, process))
        self._watch(job)
        return actions + self._drain() + self._let_go_of_unused(job)

    def stage_event(
        self, client: str, event: StageStart | StageEnd | Goodbye, now_ns: int
    ) -> list[Action]:
        """Returns no action for clients that have not said hello: the shell asks them to."""
        name = self._clients.get(client)
        if name is None:
            return []
        if isinstance(event, Goodbye):
            return self.client_lost(client, "has said goodbye")
        job = self.jobs[name]
        job.stage_event(client, event, now_ns)
        if job.actions and self.urgent is not None:
            self.urgent(self._drain())
        job.think()
        if not self.patient and (job.observations or job.renewed):
            self._watch(job)
            return self._drain()  # of all replicas
        return self._drain() if job.actions else []

    def _watch(self, job: Job) -> None:
        """What the job has finished is seen by the watch over all its replicas."""
        replicas = self.replicas[job.first_replica]
        if job.renewed:
            job.renewed = False
            replicas.renew(job.replica)
        while job.observations:
            for straggler in replicas.observe(*job.observations.pop(0)):
                job.actions.append(Notice(job.name, told(straggler), straggler))

    def knows(self, client: str) -> bool:
        return client in self._clients

    def client_lost(self, client: str, why: str) -> list[Action]:
        """The process is gone: its lease ends and its job's clocks go to full."""
        return self._leave(client, why)

    def energy(self, uuid: str, time_ns: int, energy_j: float) -> None:
        """A reading of a GPU's energy counter."""
        holder = self._holders.get(uuid)
        if holder is not None:
            self.jobs[holder].reading(uuid, time_ns, energy_j)

    def gpu_state(self, uuid: str, reasons: Set[str]) -> None:
        """Why a GPU runs below its highest clock now, by NVML's names in lower case."""
        holder = self._holders.get(uuid)
        if holder is not None:
            self.jobs[holder].gpu_state(uuid, reasons)

    def written(self, uuid: str, clock_mhz: int | None, start_ns: int, end_ns: int) -> None:
        """A clock write was done."""
        holder = self._holders.get(uuid)
        if holder is not None:
            self.jobs[holder].written(uuid, clock_mhz, start_ns, end_ns)

    def release_all(self, why: str) -> list[Action]:
        """Full clocks for everyone: writing failed, or the clock process went away."""
        for job in self.jobs.values():
            job.release(why)
        return self._drain()

    def release_gpu(self, uuid: str, why: str) -> list[Action]:
        """Full clocks for the job that holds this GPU."""
        holder = self._holders.get(uuid)
        if holder is not None:
            self.jobs[holder].release(why)
        return self._drain()

    def gpu_here(
        self, uuid: str, model: str, supported_mhz: tuple[int, ...], index: int
    ) -> list[Action]:
        """A GPU that has come, or whose clocks have become others."""
        facts = GpuFacts(uuid, model, supported_mhz, index)
        self.gpus = {**self.gpus, uuid: facts}
        for job in self.jobs.values():
            job.gpu_here(facts)
        return []

    def relearn_all(self, why: str) -> list[Action]:
        """Full clocks for everyone, and nothing that was learned is taken for true any more."""
        for job in self.jobs.values():
            job.relearn(why)
        return self._drain()

    def withhold(self, name: str, why: str | None) -> list[Action]:
        """Keep the clocks of a GPU (its UUID) or a job (its id) full until told otherwise (None).

        A job is kept as a whole: one of its GPUs, or its first replica's id for all replicas, will
        do. It is watched meanwhile as in baseline.
        """
        if why is None:
            told = self.withheld.pop(name, "")
            for job in self.jobs.values():
                if name in self._names(job) and not self._why_withheld(job):
                    job.taken_up(told)
            return []
        self.withheld[name] = why
        for job in self.jobs.values():
            if name in self._names(job):
                job.release(why)
                job.writable, job.withheld = False, why
        return self._drain()

    def planned(self, job: str, request: int, answer: PlanResult | str) -> list[Action]:
        """The planner answered a RequestPlan."""
        if job in self.jobs:
            self.jobs[job].planned(request, answer)
        return self._drain()

    def recalled(
        self, job: str, signature: str, learned: Mapping[str, object] | None
    ) -> list[Action]:
        """The answer to a Recall: what was last remembered under that signature, if anything."""
        if job in self.jobs:
            self.jobs[job].recalled(signature, learned)
        return self._drain()

    def announce_straggler(
        self, job: str, factor: float | None, starts_ns: int | None = None
    ) -> list[Action]:
        """starts_ns: when it begins, on the host's monotonic clock; None: now.

        KeyError when there is no such job.
        """
        self.jobs[job].announce_straggler(factor, starts_ns)
        return self._drain()

    def reconfigure(self, settings: Settings) -> list[Action]:
        """Other settings, for the jobs that run too; see `Settings.changed_to` for what stays."""
        changed = self.settings.changed_to(settings)
        if changed != self.settings:
            self.settings = changed
            for job in self.jobs.values():
                job.reconfigure(changed)
        return self._drain()

    def tick(self, now_ns: int) -> list[Action]:
        for job in self.jobs.values():
            job.withheld = self._why_withheld(job) if self.withheld else ""
            job.writable = self.writable and not job.withheld
            job.node_gpus = len(self._holders)
            self._surely(job, job.tick, now_ns)
        if self.patient:
            if self.urgent is not None:
                self.urgent(self._drain())
            for job in self.jobs.values():
                self._surely(job, self._think_on, job)
        return self._drain()

    def _think_on(self, job: Job) -> None:
        if job.observations or job.renewed:
            self._watch(job)
        else:
            job.think_on()

    def _surely(self, job: Job, step: Callable[[T], None], argument: T) -> None:
        """An error of ours over one job costs that one what was learned of it, and no other."""
        try:
            step(argument)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told in `errors`
            self.errors.append(error)
            job.relearn(OWN_ERROR)

    def next_due_ns(self) -> int | None:
        """When a tick has something to do; a moment that is over: now. None: nothing is known."""
        due: int | None = None
        for job in self.jobs.values():
            own = 0 if self.patient and self._has_more(job) else job.next_due_ns()
            if own is not None and (due is None or own < due):
                due = own
        return due

    def events_wait_ns(self, now_ns: int) -> int:
        """For how long events may wait, so that several are taken together."""
        return min((job.events_wait_ns(now_ns) for job in self.jobs.values()), default=0)

    @staticmethod
    def _has_more(job: Job) -> bool:
        return job.thinking or bool(job.observations)

    def holder(self, uuid: str) -> str | None:
        return self._holders.get(uuid)

    @staticmethod
    def _names(job: Job) -> tuple[str, ...]:
        """By which it can be withheld."""
        return job.name, job.first_replica, *job.roster.all_gpus()

    def _why_withheld(self, job: Job) -> str:
        return next((self.withheld[n] for n in self._names(job) if n in self.withheld), "")

    def _leave(self, client: str, why: str) -> list[Action]:
        name = self._clients.pop(client, None)
        if name is None:
            return []
        job = self.jobs[name]
        job.leave(client, why)
        self._watch(job)
        actions = self._drain() + self._let_go_of_unused(job)
        if not job.roster.members:
            del self.jobs[name]
            replicas = self.replicas[job.first_replica]
            replicas.remove(job)
            if not replicas.jobs:
                del self.replicas[job.first_replica]
            saved_j = job.ledger.savings().energy_saved_j
            actions.append(JobEnded(name, job.iteration, saved_j))
        return actions + self._drain()

    def _let_go_of_unused(self, job: Job) -> list[Action]:
        """The lease on GPUs that no member of the job names any more ends."""
        used = set(job.roster.all_gpus())
        held = [uuid for uuid, holder in self._holders.items() if holder == job.name]
        unused = [uuid for uuid in held if uuid not in used]
        for uuid in unused:
            del self._holders[uuid]
        # Also when the job's state says full: nobody else will look after these GPUs now.
        return [SetClock(uuid, None) for uuid in unused]

    def _refusal(self, client: str, name: str, hello: Hello) -> Refuse | None:
        for gpu in hello.gpus:
            uuid = self._resolve(gpu)
            if uuid not in self.gpus:
                return Refuse(client, "unknown_gpu", unknown_gpu(gpu, list(self.gpus)))
            if not self.gpus[uuid].supported_mhz:
                return Refuse(
                    client,
                    "no_clocks",
                    f"GPU {uuid} has no clock that could be set (divided by MIG, or virtual?), so "
                    "perseusd cannot serve it",
                )
            holder = self._holders.get(uuid)
            if holder is not None and holder != name:
                return Refuse(client, "gpu_held", gpu_held(uuid, holder))
        if (taken := self._rank_taken(client, name, hello)) is not None:
            return taken
        if hello.stage is not None and hello.stages is not None and hello.stage >= hello.stages:
            return Refuse(
                client,
                "bad_stage",
                f"stage {hello.stage} of {hello.stages}: stages count from 0",
            )
        return None

    def _own_place(self, client: str, name: str, hello: Hello, process: int) -> str | None:
        """The earlier connection of this very process and rank."""
        members = self.jobs[name].roster.members.values() if process and name in self.jobs else ()
        for member in members:
            same = member.process == process and member.hello.rank == hello.rank
            if same and member.client != client:
                return member.client
        return None

    def _rank_taken(self, client: str, name: str, hello: Hello) -> Refuse | None:
        """A rank is one process: a worker that imports the training script is not that rank too."""
        members = self.jobs[name].roster.members.values() if name in self.jobs else ()
        for member in members:
            if member.client != client and member.hello.rank == hello.rank:
                return Refuse(client, "rank_taken", rank_taken(hello.rank))
        return None

    def _resolve(self, gpu: str) -> str:
        """`index:N` counts in the driver's (PCI bus) order.

        `cuda-index:N` counts fastest first, which is the same order where all GPUs are alike; where
        they are not it stays unknown.
        """
        order, _, number = gpu.partition(":")
        alike = len({facts.model for facts in self.gpus.values()}) == 1
        known = order == "index" or (order == "cuda-index" and alike)
        if known and number.isdecimal():
            of_index = (u for u, facts in self.gpus.items() if facts.index == int(number))
            return next(of_index, gpu)
        return gpu

    def _drain(self) -> list[Action]:
        actions: list[Action] = []
        for job in self.jobs.values():
            actions += job.actions
            job.actions = []
        return actions


def job_name(owner: str, hello: Hello) -> str:
    """`job` for the first replica's pipeline of a user's job, `job/replica` for the others."""
    name = f"{owner}:{hello.job}"
    return f"{name}/{hello.replica}" if hello.replica else name


def told(straggler: Straggler) -> str:
    """One line for the log."""
    where = "the job" if straggler.replica is None else f"replica {straggler.replica}"
    if straggler.stage is not None:
        where += f" stage {straggler.stage}"
    what = f"{straggler.factor:.2f} times its usual time ({straggler.cause or 'unknown cause'})"
    since = f"since iteration {straggler.since_iteration}"
    if straggler.until_iteration is None:
        return f"straggler: {where} takes {what} {since}"
    return f"straggler over: {where} took {what} {since}, until {straggler.until_iteration}"
