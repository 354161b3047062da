"""Of all that a daemon is told, what concerns one job."""

from __future__ import annotations

from dataclasses import dataclass, field

from perseusd.core.controller import job_name
from perseusd.traces.heard import Follower, Heard
from perseusd.traces.recording import Input

_OF_CLIENT = ("stage_event", "client_lost")
_OF_GPU = ("energy", "gpu_state", "written", "release_gpu")
_OF_JOB = ("planned", "recalled", "announce_straggler")


@dataclass
class Selection:
    """Which inputs to keep; ask after the follower has been told of them.

    job: its id as in status. Replicas belong to it. None: everything.
    """

    job: str | None
    follower: Follower
    names: set[str] = field(default_factory=set)
    """Of the replicas that were found."""
    _clients: set[str] = field(default_factory=set)

    def keeps(self, told: Input) -> bool:
        if self.job is None:
            return True
        if told.name == "hello":
            return self._keeps_hello(told)
        if told.name in _OF_CLIENT:
            return told.arguments[0] in self._clients
        if told.name in _OF_GPU:
            return self.follower.holder(told.arguments[0]) in self.names
        return told.name not in _OF_JOB or told.arguments[0] in self.names

    def iterations(self) -> int:
        """Of the replica that has most, among those that are kept."""
        return max((own.count for own in self.jobs()), default=0)

    def jobs(self) -> list[Heard]:
        """Those that are kept, each replica by itself."""
        return [own for own in self.follower.jobs if self.job is None or own.name in self.names]

    def _keeps_hello(self, told: Input) -> bool:
        client, owner, hello = told.arguments[:3]
        name, plain = job_name(owner, hello), f"{owner}:{hello.job}"
        wanted = self.job in (name, plain)
        (self._clients.add if wanted else self._clients.discard)(client)
        if wanted:
            self.names.add(name)
        return wanted
