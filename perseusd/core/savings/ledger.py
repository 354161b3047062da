"""What iterations took and used, by what the job was doing then."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from perseusd.core.energy.gauge import Gauge, Reading
from perseusd.core.events.iterations import JobIteration
from perseusd.core.pieces import Pieces, whole
from perseusd.core.savings.account import Account, Record
from perseusd.core.savings.samples import Estimate, Sample, Savings, added

__all__ = ["Ledger", "Record"]

SETTLED = 12
"""Baseline iterations that are taken into account at once; fewer when holding begins. Until then
counters tell better and better how they are to be read."""

FULL_CLOCK = ("baseline", "reference")
COMPARED = ("hold", "reference")

Readings = list[tuple[Gauge, Reading]]


@dataclass
class Closed:
    """What a job saved while it was another one; independent of what it saves now."""

    saved_j: Estimate | None = None
    references: int = 0
    cost_j: float = 0.0

    def add(self, account: Account) -> None:
        self.saved_j = added(self.saved_j, account.saved_j())
        self.references += account.references
        self.cost_j += account.reference_cost_j() or 0.0


@dataclass
class Ledger:
    """Per-iteration times and energies of one job; phases are baseline, learn, hold, …

    Samples serve decisions and are dropped when these need fresh ones; the account serves the
    measured saving and lasts as long as the job stays the same.
    """

    gauges: dict[str, Gauge] = field(default_factory=dict)
    last: Record | None = None
    _account: Account = field(default_factory=Account)
    _closed: Closed = field(default_factory=Closed)
    _times: dict[str, Sample] = field(default_factory=lambda: defaultdict(Sample))
    _makespans: dict[str, Sample] = field(default_factory=lambda: defaultdict(Sample))
    _previous: tuple[JobIteration, str] | None = None
    _baseline: list[tuple[Record, Readings | None]] = field(default_factory=list)

    def poll(self, uuid: str, time_ns: int, energy_j: float) -> None:
        self._gauge(uuid).meter.poll(time_ns, energy_j)

    def iteration(
        self, iteration: JobIteration, phase: str, gpus: Sequence[Sequence[str]]
    ) -> Record | None:
        """`taking_in` at once."""
        return whole(self.taking_in(iteration, phase, gpus))

    def taking_in(
        self, iteration: JobIteration, phase: str, gpus: Sequence[Sequence[str]]
    ) -> Pieces[Record | None]:
        """An iteration is whole, which finishes the one before it. Returns that one.

        gpus: the UUIDs of each rank's.
        """
        previous, self._previous = self._previous, (iteration, phase)
        self._makespans[phase].add((iteration.end_ns - iteration.start_ns) * 1e-9)
        follows = previous is not None and previous[0].number == iteration.number - 1
        for uuids, own in zip(gpus, iteration.ranks, strict=True):
            for uuid in uuids:
                self._gauge(uuid).computed(own.stamps_ns, follows=follows)
        if previous is None or not follows:
            return None
        before, was = previous
        full = was in FULL_CLOCK
        readings = yield from self._reading(gpus, before.start_ns, iteration.start_ns, full=full)
        record = Record(
            before.number,
            was,
            (iteration.start_ns - before.start_ns) * 1e-9,
            (before.end_ns - before.start_ns) * 1e-9,
            _joules(readings),
        )
        self._times[was].add(record.time_s)
        self._enter(record, readings)
        self.last = record
        return record

    def interrupt(self) -> None:
        """The next whole iteration does not follow the last one."""
        self._previous = None

    def clear(self) -> None:
        """The job is another one: forget its iterations; joules saved so far stay saved."""
        self._times.clear()
        self._makespans.clear()
        self._previous = None
        self._baseline.clear()
        self._closed.add(self._account)
        self._account = Account()

    def drop(self, phase: str) -> None:
        """Measure a phase of the same job anew."""
        for samples in (self._times, self._makespans):
            samples.pop(phase, None)

    def set_aside(self, phase: str) -> tuple[Sample, Sample]:
        """As `drop`, but returns what `put_back` takes: (times, makespans)."""
        return self._times.pop(phase, Sample()), self._makespans.pop(phase, Sample())

    def put_back(self, phase: str, aside: tuple[Sample, Sample]) -> None:
        """What was measured meanwhile does not count."""
        self._times[phase], self._makespans[phase] = aside

    def keep_newest(self, phase: str, count: int) -> None:
        """What was measured before is not of the same kind."""
        for samples in (self._times, self._makespans):
            if phase in samples:
                del samples[phase].values[:-count]

    def makespans(self, phase: str) -> Sample:
        """From the first computation's start to the last one's end."""
        return self._makespans[phase]

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
        """Held over full-clock iteration time, minus 1."""
        return self._account.slowdown()

    def saving(self) -> Estimate | None:
        """1 − held over full-clock energy, per iteration."""
        return self._account.saving()

    @property
    def energy_saved_j(self) -> float | None:
        """Since the start; None until it was measured."""
        saved = added(self._closed.saved_j, self._account.saved_j())
        return None if saved is None else saved.value

    def savings(self) -> Savings:
        """All that status shows."""
        saved = added(self._closed.saved_j, self._account.saved_j())
        cost_j = self._closed.cost_j + (self._account.reference_cost_j() or 0.0)
        whole_j = saved.value + cost_j if saved is not None else 0.0
        return Savings(
            self.saving(),
            self.slowdown(),
            saved,
            self._closed.references + self._account.references,
            cost_j / whole_j if whole_j > 0 else None,
        )

    def _gauge(self, uuid: str) -> Gauge:
        if uuid not in self.gauges:
            self.gauges[uuid] = Gauge()
        return self.gauges[uuid]

    def _enter(self, record: Record, readings: Readings | None) -> None:
        if record.phase == "baseline":
            self._baseline.append((record, readings))
        if len(self._baseline) == SETTLED or (self._baseline and record.phase in COMPARED):
            waiting, self._baseline = self._baseline, []
            self._account.baseline([r._replace(energy_j=_joules(own)) for r, own in waiting])
        if record.phase != "baseline":
            self._account.add(record)

    def _reading(
        self, gpus: Sequence[Sequence[str]], start_ns: int, end_ns: int, *, full: bool
    ) -> Pieces[Readings | None]:
        """Of all GPUs; None where one's energy is not known."""
        known: Readings = []
        gauges = [self.gauges[uuid] for uuids in gpus for uuid in uuids]
        for gauge in gauges:
            if (reading := gauge.read(start_ns, end_ns, full=full)) is not None:
                known.append((gauge, reading))
            yield
        return known if len(known) == len(gauges) > 0 else None


def _joules(readings: Readings | None) -> float | None:
    return None if readings is None else sum(gauge.joules(own) for gauge, own in readings)
