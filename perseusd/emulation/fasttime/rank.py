"""One training process on its GPU, and where it is in its iteration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random

from perseus_hooks.events import Hello

from perseusd.emulation.fasttime.gpu import FastGpu
from perseusd.gpus.physics import WorkCurve


@dataclass
class Shadow:
    """The same iteration with every clock full, kept beside the real one.

    ends_ns: of its computations so far, by position; busy_s, busy_j: of them together.
    """

    free_ns: int = 0
    ends_ns: list[int] = field(default_factory=list)
    busy_s: float = 0.0
    busy_j: float = 0.0


@dataclass
class FastRank:
    """rank: within its replica, its stage. client: None while the daemon has heard no hello."""

    replica: int
    rank: int
    index: int
    """Over all replicas; its GPU's number."""
    gpu: FastGpu
    curves: Mapping[str, WorkCurve]
    hello: Hello
    noise: Random
    client: str | None = None
    position: int = 0
    free_ns: int = 0
    ends_ns: list[int] = field(default_factory=list)
    arrived: bool = False
    """Whether the start of the computation at `position` is settled."""
    version: int = 0
    """Predictions of an end that a clock change has made obsolete have another one."""
    shadow: Shadow = field(default_factory=Shadow)

    @property
    def uuid(self) -> str:
        return self.hello.gpus[0]

    def begin(self, now: int) -> None:
        """A new iteration."""
        self.position, self.free_ns, self.ends_ns, self.arrived = 0, now, [], False
        self.shadow = Shadow(now)
