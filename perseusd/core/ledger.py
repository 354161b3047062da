"""What iterations took and used, by what the job was doing then."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from perseusd.core.iterations import JobIteration
from perseusd.core.meter import EnergyMeter
from perseusd.core.savings import Estimate, Sample, ratio


class Record(NamedTuple):
    """One finished iteration, from its start to the next one's start."""

    number: int
    phase: str
    time_s: float
    makespan_s: float
    energy_j: float | None


@dataclass
class Ledger:
    """Per-iteration times and energies of one job; phases are baseline, learn, hold, …"""

    meters: dict[str, EnergyMeter] = field(default_factory=dict)
    last: Record | None = None
    energy_saved_j: float = 0.0
    _times: dict[str, Sample] = field(default_factory=lambda: defaultdict(Sample))
    _energies: dict[str, Sample] = field(default_factory=lambda: defaultdict(Sample))
    _makespans: dict[str, Sample] = field(default_factory=lambda: defaultdict(Sample))
    _previous: tuple[JobIteration, str] | None = None

    def poll(self, uuid: str, time_ns: int, energy_j: float) -> None:
        self.meters.setdefault(uuid, EnergyMeter()).poll(time_ns, energy_j)

    def iteration(self, iteration: JobIteration, phase: str, uuids: Sequence[str]) -> Record | None:
        """An iteration is whole, which finishes the one before it. Returns that one."""
        previous, self._previous = self._previous, (iteration, phase)
        self._makespans[phase].add((iteration.end_ns - iteration.start_ns) * 1e-9)
        if previous is None or previous[0].number != iteration.number - 1:
            return None
        before, was = previous
        record = Record(
            before.number,
            was,
            (iteration.start_ns - before.start_ns) * 1e-9,
            (before.end_ns - before.start_ns) * 1e-9,
            self._energy(uuids, before.start_ns, iteration.start_ns),
        )
        self._times[was].add(record.time_s)
        if record.energy_j is not None:
            self._energies[was].add(record.energy_j)
            self._count_saved(record)
        self.last = record
        return record

    def interrupt(self) -> None:
        """The next whole iteration does not follow the last one."""
        self._previous = None

    def clear(self) -> None:
        """Forget the iterations; joules saved so far stay saved."""
        self._times.clear()
        self._energies.clear()
        self._makespans.clear()
        self._previous = None

    def drop(self, phase: str) -> None:
        for samples in (self._times, self._energies, self._makespans):
            samples.pop(phase, None)

    def count(self, phase: str) -> int:
        return len(self._times[phase].values)

    def sample(self, phase: str) -> Sample | None:
        return self._times[phase] if self.count(phase) else None

    def makespan_s(self, phase: str) -> float:
        """Mean time from the first computation's start to the last one's end."""
        return self._makespans[phase].mean

    def usual_gap_s(self) -> float:
        """From the pipeline's end to the next iteration's start, at full clock."""
        baseline = self.sample("baseline")
        return baseline.mean - self.makespan_s("baseline") if baseline is not None else 0.0

    def typical_time_s(self) -> float | None:
        """Iteration time at full clock, where known; else the last iteration's."""
        baseline = self.sample("baseline")
        if baseline is not None:
            return baseline.mean
        return self.last.time_s if self.last is not None else None

    def slowdown(self) -> Estimate | None:
        """Hold over baseline iteration time, minus 1."""
        times = ratio(self._times["hold"], self._times["baseline"])
        return None if times is None else Estimate(*(v - 1 for v in times))

    def saving(self) -> Estimate | None:
        """1 − hold energy over baseline energy, per iteration."""
        energies = ratio(self._energies["hold"], self._energies["baseline"])
        if energies is None:
            return None
        return Estimate(1 - energies.value, 1 - energies.high, 1 - energies.low)

    def _count_saved(self, record: Record) -> None:
        baseline = self._energies["baseline"]
        if record.phase in ("learn", "hold") and baseline.values and record.energy_j is not None:
            self.energy_saved_j += baseline.mean - record.energy_j

    def _energy(self, uuids: Sequence[str], start_ns: int, end_ns: int) -> float | None:
        total = 0.0
        for uuid in uuids:
            meter = self.meters.get(uuid)
            joules = meter.between(start_ns, end_ns) if meter is not None else None
            if joules is None:
                return None
            total += joules
        return total
