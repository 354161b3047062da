"""Whether the processes that hold leases use the GPUs that they name, by the driver's word.

A lease begins with a hello, which may come before the process has a context on its GPU: so it is
given, and clocks stay full until the driver lists the process there. A lease on a GPU that somebody
else uses, and its holder does not, ends. Where both use it, clocks stay full: nobody's work is
slowed for another's job. Emulated GPUs list nobody, and are not looked at.

The driver is asked in a thread for each GPU, so that a call that hangs delays nobody.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from perseusd.daemon.access import Caller, user_name
from perseusd.daemon.processes import MPS_SERVER, Process, in_host_namespace, look_up
from perseusd.errors import GpuError
from perseusd.gpus.base import Gpu

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
STALE_S = 5.0
"""After so long without an answer, what was seen last says nothing any more."""

LookUp = Callable[[int], Process | None]

OTHER_NAMESPACE = "perseusd does not run in the host's process namespace (hostPID)"

OFF, BY_USER = "off", "user"
"""Values of [access] gpu_check beside "process"."""


class Holder(NamedTuple):
    """A process that holds a lease on a GPU, as far as its hello says."""

    client: str
    caller: Caller
    rank: int
    uuid: str


class Found(NamedTuple):
    """kept_full: by GPU, why its clock stays full. ended: by client, why its lease ends."""

    kept_full: dict[str, str]
    ended: dict[str, str]


class GpuUse(NamedTuple):
    """Who uses a GPU, as of time_s (monotonic).

    wanted: pids of those who said so then. holders: of these, those that were found.
    """

    time_s: float
    wanted: frozenset[int]
    processes: tuple[Process, ...] = ()
    holders: Mapping[int, Process] = {}
    error: str = ""


class _Reader(threading.Thread):
    """Looks at one GPU, while somebody holds a lease on it."""

    def __init__(self, gpu: Gpu, look_up: LookUp) -> None:
        super().__init__(name=f"ownership-{gpu.info.index}", daemon=True)
        self.gpu = gpu
        self._look_up = look_up
        self.use: GpuUse | None = None
        self.wanted: frozenset[int] = frozenset()
        """Pids of the holders."""
        self.wake = threading.Event()
        self.stopping = False

    def want(self, pids: frozenset[int]) -> None:
        if pids != self.wanted:
            self.wanted = pids
            self.wake.set()

    def run(self) -> None:
        while not self.stopping:
            wanted = self.wanted
            self.use = self._look(wanted) if wanted else None
            self.wake.wait(LOOK_EVERY_S if wanted else None)
            self.wake.clear()

    def _look(self, wanted: frozenset[int]) -> GpuUse:
        began_s = time.monotonic()
        try:
            listed = tuple(filter(None, map(self._look_up, self.gpu.process_ids())))
        except GpuError as error:
            return GpuUse(began_s, wanted, error=str(error))
        except Exception as error:  # the thread outlives whatever a driver does
            log.exception("GPU %s: cannot tell who uses it", self.gpu.info.uuid)
            return GpuUse(began_s, wanted, error=repr(error))
        holders = {pid: process for pid in wanted if (process := self._look_up(pid)) is not None}
        return GpuUse(began_s, wanted, listed, holders)


class Ownership:
    """Looks after the leases of real GPUs. check: a value of [access] gpu_check."""

    def __init__(
        self,
        gpus: Sequence[Gpu],
        check: str,
        seen_from_host: Callable[[], bool] = in_host_namespace,
        look_up: LookUp = look_up,
    ) -> None:
        self.check = check
        real = [gpu for gpu in gpus if not gpu.info.emulated]
        self._readers = {gpu.info.uuid: _Reader(gpu, look_up) for gpu in real}
        self._divided = {gpu.info.uuid for gpu in gpus if gpu.info.mig_enabled}
        self._look_up = look_up
        self._from_host = seen_from_host()

    @property
    def blind(self) -> str | None:
        """Why it can never be told who uses a GPU here, whoever holds it; None where it can."""
        if self._from_host or self.check == OFF or not self._readers:
            return None
        return f"no clock will be lowered: who uses a GPU cannot be told, as {OTHER_NAMESPACE}"

    def start(self) -> None:
        if (blind := self.blind) is not None:
            log.warning('%s; [access] gpu_check = "off" asks for nothing to be told', blind)
        for reader in self._readers.values():
            reader.start()

    def add(self, gpu: Gpu) -> None:
        """One that was not there before, or is there again after the driver was let go of."""
        if not gpu.info.emulated:
            self._readers[gpu.info.uuid] = _Reader(gpu, self._look_up)
            self._readers[gpu.info.uuid].start()

    def stop(self) -> None:
        for reader in self._readers.values():
            reader.stopping = True
            reader.wake.set()

    def expect(self, holders: Iterable[Holder]) -> None:
        """New ones: their GPUs are looked at now, so that `look` soon knows."""
        for holder in holders:
            reader = self._readers.get(holder.uuid)
            if reader is not None and self.check != OFF:
                reader.want(reader.wanted | {holder.caller.pid})

    @property
    def reading(self) -> bool:
        """Whether a thread may be inside the driver now."""
        return any(reader.is_alive() for reader in self._readers.values())

    def look(self, holders: Iterable[Holder], now_s: float) -> Found:
        """What is known of these, and of the leases that they hold; to be called often."""
        found = Found({}, {})
        by_gpu: dict[str, list[Holder]] = {uuid: [] for uuid in self._readers}
        for holder in holders:
            if holder.uuid in by_gpu:
                by_gpu[holder.uuid].append(holder)
        for uuid, own in by_gpu.items():
            if self.check == OFF or not own:
                self._readers[uuid].want(frozenset())
                continue
            self._readers[uuid].want(frozenset(holder.caller.pid for holder in own))
            self._judge(uuid, own, now_s, found)
        return found

    def _judge(self, uuid: str, own: list[Holder], now_s: float, found: Found) -> None:
        use = self._readers[uuid].use
        if unknown := self._unknown(uuid, own, use, now_s):
            found.kept_full[uuid] = unknown
            return
        assert use is not None
        for holder in own:
            seen = any(self._is_of(process, holder, use) for process in use.processes)
            other = next((p for p in use.processes if _is_foreign(p, holder.caller)), None)
            if other is not None and not seen:
                found.ended[holder.client] = _not_yours(uuid, other)
            elif other is not None:
                found.kept_full[uuid] = _shared(uuid, other)
            elif not seen:
                found.kept_full.setdefault(uuid, _unseen(holder, use))
        if uuid in self._divided and uuid not in found.kept_full:
            self._judge_parts(uuid, own, use, found)

    def _judge_parts(self, uuid: str, own: list[Holder], use: GpuUse, found: Found) -> None:
        """Under MIG the parts share one clock: nobody but the job may use any of them."""
        for process in use.processes:
            if not any(_is_related(process, holder, use) for holder in own):
                found.kept_full[uuid] = _shared(uuid, process)

    def _unknown(self, uuid: str, own: list[Holder], use: GpuUse | None, now_s: float) -> str:
        """Why nothing is known of who uses a GPU; empty where it is."""
        if not self._from_host:
            why = OTHER_NAMESPACE
        elif use is None or not all(holder.caller.pid in use.wanted for holder in own):
            return f"what uses GPU {uuid} is not known yet"
        elif use.error:
            why = use.error
        elif now_s - use.time_s > STALE_S:
            why = "the driver does not answer"
        else:
            return ""
        return f"what uses GPU {uuid} cannot be told: {why}"

    def _is_of(self, process: Process, holder: Holder, use: GpuUse) -> bool:
        if self.check == BY_USER:
            return holder.caller.uid in process.uids
        return _is_related(process, holder, use)


def _is_related(process: Process, holder: Holder, use: GpuUse) -> bool:
    """The process itself, a child of it or one further down, or one that it came from."""
    pid, uid = holder.caller.pid, holder.caller.uid
    if process.pid == pid:
        return True
    if uid not in process.uids:
        return False
    holding = use.holders.get(pid)
    return pid in process.lineage or (holding is not None and process.pid in holding.lineage)


def _is_foreign(process: Process, caller: Caller) -> bool:
    """Somebody else's. MPS's server computes for others, who are listed themselves."""
    return (
        process.pid != caller.pid and caller.uid not in process.uids and process.name != MPS_SERVER
    )


def _whose(process: Process) -> str:
    names = [user_name(uid) for uid in sorted(process.uids)]
    return " ".join(["process", str(process.pid), *(["of", names[0]] if names else [])])


def _not_yours(uuid: str, other: Process) -> str:
    return (
        "name the GPU that you use with PERSEUS_GPUS or configure(gpus=): GPU "
        f"{uuid} is used by {_whose(other)}, and not by your process"
    )


def _shared(uuid: str, other: Process) -> str:
    return f"GPU {uuid} is used by {_whose(other)} as well, which a lower clock would slow"


def _unseen(holder: Holder, use: GpuUse) -> str:
    mps = any(process.name == MPS_SERVER for process in use.processes)
    beside = " (MPS's server was)" if mps else ""
    return (
        f"process {holder.caller.pid} of rank {holder.rank} was not seen on GPU {holder.uuid}, "
        f"which it says it uses{beside}"
    )
