"""Clock writes on their way: one after another through the driver's lock, and what goes wrong.

Requests are treated as by the daemon's actuator and the clock process: what is in force already is
not asked for, a request that waits is superseded by the next for the same GPU, a lock that fails
leaves the GPU as if reset, and a reset that fails is tried again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeVar

from perseusd.emulation.fasttime.conditions import Conditions
from perseusd.emulation.fasttime.disturbances import (
    FailedWrite,
    IgnoredClock,
    OfWrites,
    SlowWrite,
    StuckLow,
    of,
)
from perseusd.emulation.fasttime.rank import FastRank
from perseusd.emulation.fasttime.virtual import NS, VirtualTime

_RETRY_NS = NS
"""After a reset that failed, as the daemon's."""

AnyWrites = TypeVar("AnyWrites", bound=OfWrites)


class Write(NamedTuple):
    """A clock write that was done, from being asked for to its end, in which iteration."""

    uuid: str
    clock_mhz: int | None
    asked_ns: int
    end_ns: int
    iteration: int


class Outcome(Protocol):
    """Who is told what became of writes, and of GPUs' clocks."""

    def written(self, write: Write) -> None: ...

    def failed(self, now: int, rank: FastRank, why: str) -> None: ...

    def reclocked(self, now: int, rank: FastRank, index: int) -> None: ...


class _Pending(NamedTuple):
    clock_mhz: int | None
    asked_ns: int


class Clocks:
    """All GPUs' clocks. ranks: by GPU number. writes: those done so far; counts: by GPU number."""

    def __init__(
        self,
        ranks: Sequence[FastRank],
        conditions: Conditions,
        time: VirtualTime,
        outcome: Outcome,
    ) -> None:
        self.writes: list[Write] = []
        self.counts = [0] * len(ranks)
        self._ranks, self._time, self._outcome = ranks, time, outcome
        self._latency_ns = round(conditions.write_latency_s * NS)
        self._settle_ns = round(conditions.settle_s * NS)
        self._requested: list[int | None] = [None] * len(ranks)
        self._pending: dict[int, _Pending] = {}
        self._free_ns = 0
        self._away = 0
        self._ignored = of(IgnoredClock, conditions.disturbances)
        self._stuck = of(StuckLow, conditions.disturbances)
        self._slow = of(SlowWrite, conditions.disturbances)
        self._failing = of(FailedWrite, conditions.disturbances)
        self._hits: dict[int, int] = defaultdict(int)

    @property
    def present(self) -> bool:
        """Whether the clock process is there."""
        return self._away == 0

    def begin(self, now: int) -> None:
        """An iteration begins."""
        for rank in self._ranks:
            for ignored in self._ignored:
                if ignored.at == self._time.iteration and ignored.concerns(rank.replica, rank.rank):
                    self._outcome.reclocked(now, rank, rank.gpu.top)

    def request(self, now: int, gpu: int, clock_mhz: int | None) -> None:
        if not self.present or self._requested[gpu] == clock_mhz:
            return
        self._requested[gpu] = clock_mhz
        waiting = gpu in self._pending
        self._pending[gpu] = _Pending(clock_mhz, now)
        if not waiting:
            self._call(now, gpu)

    def go_away(self, now: int) -> list[Write]:
        """The clock process ends and puts every clock back; returns what that means as writes."""
        self._away += 1
        lowered = [gpu for gpu, clock in enumerate(self._requested) if clock is not None]
        self._requested = [None] * len(self._ranks)
        self._pending.clear()
        for gpu in range(len(self._ranks)):
            self._set(now, gpu, None)
        writes = [Write(self._ranks[g].uuid, None, now, now, self._time.iteration) for g in lowered]
        self.writes += writes
        return writes

    def come_back(self) -> None:
        self._away -= 1

    def _call(self, now: int, gpu: int) -> None:
        """The driver is called: it takes the lock in turn, unless it hangs by itself."""
        if (slow := self._hit(self._slow, gpu)) is not None:
            self._time.at(now + round(slow.seconds * NS), self._returned, gpu)
            return
        start = max(now, self._free_ns)
        self._free_ns = start + self._latency_ns
        self._time.at(start + self._latency_ns, self._returned, gpu)

    def _returned(self, now: int, gpu: int) -> None:
        pending = self._pending.pop(gpu, None)
        if pending is None:
            return  # the clock process went away meanwhile
        if self._hit(self._failing, gpu) is not None:
            self._fail(now, gpu, pending)
            return
        rank = self._ranks[gpu]
        self.counts[gpu] += 1
        write = Write(rank.uuid, pending.clock_mhz, pending.asked_ns, now, self._time.iteration)
        self.writes.append(write)
        self._outcome.written(write)
        self._set(now, gpu, pending.clock_mhz)

    def _fail(self, now: int, gpu: int, pending: _Pending) -> None:
        self._requested[gpu] = None
        if pending.clock_mhz is None:
            self._time.at(now + _RETRY_NS, self._retry, gpu)
        else:
            self._set(now, gpu, None)
        what = "full clock" if pending.clock_mhz is None else f"{pending.clock_mhz} MHz"
        rank = self._ranks[gpu]
        self._outcome.failed(now, rank, f"could not set {what} on {rank.uuid}: driver error")

    def _retry(self, now: int, gpu: int) -> None:
        if self.present and self._requested[gpu] is None and gpu not in self._pending:
            self._pending[gpu] = _Pending(None, now)
            self._call(now, gpu)

    def _set(self, now: int, gpu: int, clock_mhz: int | None) -> None:
        rank = self._ranks[gpu]
        index = rank.gpu.top
        if clock_mhz is not None:
            index = rank.gpu.clocks_mhz.index(clock_mhz)
        elif rank.gpu.index < index and self._hit(self._stuck, gpu) is not None:
            return
        if any(d.now(self._time.iteration, rank.replica, rank.rank) for d in self._ignored):
            index = rank.gpu.top
        self._time.at(now + self._settle_ns, self._outcome.reclocked, rank, index)

    def _hit(self, spells: Sequence[AnyWrites], gpu: int) -> AnyWrites | None:
        """The one that befalls this GPU now, counted."""
        rank = self._ranks[gpu]
        for spell in spells:
            left = spell.most is None or self._hits[id(spell)] < spell.most
            if left and spell.now(self._time.iteration, rank.replica, rank.rank):
                self._hits[id(spell)] += 1
                return spell
        return None
