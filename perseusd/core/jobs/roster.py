"""Who takes part in a job: its clients, their stages and GPUs, and who is missing."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from perseus_hooks.events import Hello

from perseusd.core.events.tracking import RankTrack
from perseusd.core.jobs.recurrence import Recurrence

NAMED_STAGES = 16
"""Missing stages that a reason names; more make it no clearer."""


@dataclass
class Member:
    """One training process. Processes of one stage form a tensor-parallel group.

    process: the same for all connections of one process; 0 where that is not known.
    """

    client: str
    hello: Hello
    gpus: tuple[str, ...]
    process: int = 0
    track: RankTrack = field(default_factory=RankTrack)
    recurrence: Recurrence = field(default_factory=Recurrence)
    """Of its iterations, while the track does not know their order."""
    sequence: int = 0
    heard_ns: int = 0


@dataclass
class Roster:
    """The members of one pipeline, by client."""

    members: dict[str, Member] = field(default_factory=dict)
    _leaders: dict[int, Member] = field(default_factory=dict)
    """By stage; asked for at each event."""

    def add(self, member: Member) -> None:
        self.members[member.client] = member
        self._find_leaders()

    def remove(self, client: str) -> Member | None:
        removed = self.members.pop(client, None)
        self._find_leaders()
        return removed

    def _find_leaders(self) -> None:
        self._leaders = {}
        for member in sorted(self.members.values(), key=lambda m: m.hello.rank):
            if member.hello.stage is not None:
                self._leaders.setdefault(member.hello.stage, member)

    @property
    def stages(self) -> int | None:
        told = {m.hello.stages for m in self.members.values()}
        return told.pop() if len(told) == 1 else None

    @property
    def schedule(self) -> str | None:
        """The schedule's name, where every process that names one names the same."""
        told = {m.hello.schedule for m in self.members.values()} - {None}
        return told.pop() if len(told) == 1 else None

    def leader(self, stage: int) -> Member | None:
        """The member whose events time a stage: its lowest rank."""
        return self._leaders.get(stage)

    def gpus(self, stage: int) -> list[str]:
        """All GPUs of a stage, each once."""
        own = (m for m in self.members.values() if m.hello.stage == stage)
        return list(dict.fromkeys(uuid for m in own for uuid in m.gpus))

    def all_gpus(self) -> list[str]:
        return list(dict.fromkeys(uuid for m in self.members.values() for uuid in m.gpus))

    @property
    def expected(self) -> int | None:
        """How many processes this pipeline has; None when nobody told."""
        if self.stages is None:
            return None
        worlds = {(m.hello.world_size, m.hello.replicas or 1) for m in self.members.values()}
        if len(worlds) != 1:
            return self.stages
        world, replicas = worlds.pop()
        return self.stages if world is None else max(self.stages, world // replicas)

    @property
    def slowdown_budget(self) -> float | None:
        """The smallest that a process told; None where none did."""
        told = (m.hello.slowdown_budget for m in self.members.values())
        return min((budget for budget in told if budget is not None), default=None)

    def missing_stages(self) -> list[int]:
        """The first NAMED_STAGES of them: what a client claims to have may be a million."""
        present = {m.hello.stage for m in self.members.values()}
        missing = (s for s in range(self.stages or 0) if s not in present)
        return list(itertools.islice(missing, NAMED_STAGES))

    def without_stage(self) -> int | None:
        """The lowest rank that told how many stages there are, and not which is its own."""
        ranks = [m.hello.rank for m in self.members.values() if m.hello.stage is None]
        return min(ranks, default=None) if self.stages is not None else None

    def not_recurring(self) -> tuple[int, str] | None:
        """The first rank whose order will not be understood as its iterations are, and why."""
        for member in self._leaders.values():
            if (trouble := member.recurrence.trouble) is not None:
                return member.hello.rank, trouble
        return None

    def shared_gpu(self) -> tuple[str, int, int] | None:
        """A GPU that two stages name, with the two: it cannot have a clock for each."""
        stages: dict[str, set[int]] = {}
        for member in self.members.values():
            if (stage := member.hello.stage) is not None:
                for uuid in member.gpus:
                    stages.setdefault(uuid, set()).add(stage)
        for uuid, own in stages.items():
            if len(own) > 1:
                first, second = sorted(own)[:2]
                return uuid, first, second
        return None

    def obstacle(self) -> str | None:
        """Why this pipeline cannot be planned, whatever its events say; None when it can."""
        members = self.members.values()
        if self.stages is None:
            return (
                "its topology is not known: call perseus_hooks.configure(stage=…, stages=…) "
                "or set PERSEUS_STAGE and PERSEUS_STAGES on every rank, alike"
            )
        if (rank := self.without_stage()) is not None:
            return f"rank {rank} did not say its stage: configure(stage=…) or PERSEUS_STAGE"
        if missing := self.missing_stages():
            named = ", ".join(map(str, missing))
            stages = "stage" if len(missing) == 1 else "stages"
            return f"waiting for the ranks of {stages} {named}: no process has said hello for them"
        if self.expected is not None and len(self.members) < self.expected:
            return f"waiting for {self.expected - len(self.members)} of {self.expected} ranks"
        if len(members) > self.stages and any(m.hello.replicas is None for m in members):
            return (
                "several ranks are on one stage, and whether as tensor-parallel group or as "
                "replicas is not known: say replica= and replicas= (1 without data parallelism)"
            )
        for member in members:
            if not member.gpus:
                return f"rank {member.hello.rank} did not say which GPU it uses (PERSEUS_GPUS)"
            if member.hello.uses_cuda and member.hello.time_source == "host":
                return (
                    f"rank {member.hello.rank} runs on CUDA but sends host times, which are times "
                    "of launch and not of computation: PyTorch tells the device's unless "
                    "configure(time_source='host') was called, JAX through its adapter"
                )
        if shared := self.shared_gpu():
            uuid, first, second = shared
            return (
                f"stages {first} and {second} say that they use the same GPU {uuid}, which has "
                "only one clock: give each stage its own with PERSEUS_GPUS"
            )
        return None
