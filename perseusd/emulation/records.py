"""What an emulated job leaves behind: its iterations as they ran."""

from __future__ import annotations

from dataclasses import dataclass

from perseusd.core.model import Computation


@dataclass(frozen=True)
class Span:
    """One computation as it ran, on the ideal timeline; the clock is the one it started with."""

    computation: Computation
    start_ns: int
    end_ns: int
    clock_mhz: int
    energy_j: float

    @property
    def time_s(self) -> float:
        return (self.end_ns - self.start_ns) / 1e9


@dataclass(frozen=True)
class IterationRecord:
    """One iteration, from its start to the next one's.

    spans: per rank, in execution order.
    energy_j, clock_writes: each GPU's counters when the iteration ended, as anyone reads them;
        the second counts how often its clock was locked or unlocked.
    straggling: whether a slower replica held up the end.
    """

    iteration: int
    start_ns: int
    end_ns: int
    energy_j: tuple[float, ...]
    clock_writes: tuple[int, ...]
    spans: tuple[tuple[Span, ...], ...]
    straggling: bool = False

    @property
    def time_s(self) -> float:
        return (self.end_ns - self.start_ns) / 1e9

    @property
    def total_energy_j(self) -> float:
        return sum(self.energy_j)
