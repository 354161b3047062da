"""The events of the wire: what a training process tells perseusd, and what it is told back.

Plain values that do not change; those that come by the thousand are tuples, which cost least to
make. The bytes are in `wire`, the meaning of every field in docs/protocol.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Union

WIRE_MAJOR = 1
WIRE_MINOR = 0

INSTRUCTIONS = (
    "forward",
    "backward",
    "input_gradient",
    "weight_gradient",
    "recompute",
    "iteration",
    "other",
)
TIME_SOURCES = ("host", "cuda_event", "ready", "emulated")


@dataclass(frozen=True)
class Hello:
    """Who is speaking. Sent first and whenever asked; a later one replaces an earlier one.

    None says that the client does not know. gpus: UUIDs (`GPU-…`, `MIG-…`), `index:N` in PCI bus
    order or `cuda-index:N` in CUDA's own order. slowdown_budget: 0.05 allows 5 % longer iterations.
    """

    job: str
    rank: int
    world_size: int | None
    local_rank: int | None
    stage: int | None
    stages: int | None
    replica: int | None
    replicas: int | None
    schedule: str | None
    gpus: tuple[str, ...]
    time_source: str
    uses_cuda: bool
    slowdown_budget: float | None
    hostname: str
    major: int = WIRE_MAJOR
    minor: int = WIRE_MINOR


class StageStart(NamedTuple):
    """A computation starts. sequence counts every event the client tried to send, from 1."""

    sequence: int
    time_ns: int
    token: int
    instruction: str
    microbatch: int
    chunk: int
    stage: int | None
    iteration: int | None


class StageEnd(NamedTuple):
    """The computation that started with this token has ended."""

    sequence: int
    time_ns: int
    token: int


class Goodbye(NamedTuple):
    """The process ends or stops speaking on purpose."""

    sequence: int
    time_ns: int


@dataclass(frozen=True)
class Welcome:
    """From the daemon: the hello was accepted; this is the daemon's version of the wire."""

    major: int = WIRE_MAJOR
    minor: int = WIRE_MINOR


@dataclass(frozen=True)
class Introduce:
    """From the daemon: I do not know you, say hello again."""


@dataclass(frozen=True)
class Refusal:
    """From the daemon: this was not accepted. code is for programs, reason for people."""

    code: str
    reason: str


Event = Union[Hello, StageStart, StageEnd, Goodbye, Welcome, Introduce, Refusal]
