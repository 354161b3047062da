"""What every reader makes of a file: runs, and in each the iterations as a detector sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from perseusd.core.stragglers import Observation


@dataclass(frozen=True)
class Run:
    """One job from one start to one end, as far as the file tells.

    name: which of the file's runs, in words; None where it holds one.
    observations: one for every replica and iteration, in the order in which they happened.
    ranks: by (replica, stage), the rank's number as the trace tells it; empty where it does not.
    replicas_told: whether the trace says which replica an observation is of.
    left_out: iterations that are in the file and not in `observations`, by the reason in words.
    """

    name: str | None
    observations: Sequence[Observation]
    ranks: Mapping[tuple[int, int], int] = field(default_factory=dict)
    replicas_told: bool = False
    left_out: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Trace:
    """A file that was read; kind: what it was recognised as, in words."""

    path: Path
    kind: str
    runs: Sequence[Run]
    notes: Sequence[str] = ()
