"""An emulated training job: one worker process a stage, started, watched and stopped together."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from perseusd.core.schedules import one_f_one_b
from perseusd.emulation.coordinator import Coordinator, Ended, Observer, Straggler
from perseusd.emulation.environment import own_environment
from perseusd.emulation.records import IterationRecord, Span
from perseusd.emulation.worker import MESSAGE_BYTES, Setup
from perseusd.emulation.workloads import Workload
from perseusd.errors import PerseusError
from perseusd.gpus.simulated import open_node

_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 2.0

SocketPair = tuple[socket.socket, socket.socket]


@dataclass(frozen=True)
class JobOptions:
    """How a workload is run.

    noise: relative standard deviation of one computation's time.
    missing_rank: a rank whose hooks never speak, though it trains like the others.
    on_straggler: called in a thread of its own when the straggler sets in (True) and ends (False).
    """

    microbatches: int
    noise: float = 0.0
    seed: int = 0
    straggler: Straggler | None = None
    missing_rank: int | None = None
    job: str = "demo"
    on_straggler: Callable[[bool], None] | None = None


class EmulatedJob:
    """start(), then read iterations() as they come, then stop(). Also a context manager.

    node_path: the simulated GPUs, at least one a stage; stage s trains on GPU s.
    """

    def __init__(
        self, workload: Workload, node_path: Path, runtime_dir: Path, options: JobOptions
    ) -> None:
        self.workload = workload
        self.options = options
        self.orders = one_f_one_b(workload.stages, options.microbatches)
        self._node_path = node_path
        self._runtime_dir = runtime_dir
        self._node = open_node(node_path)
        self._gpus = self._node.gpus[: workload.stages]
        self._processes: list[subprocess.Popen[bytes]] = []
        self._controls: list[socket.socket] = []
        self._records: list[IterationRecord] = []
        self._coordinator = Coordinator(
            self._controls,
            round(workload.full_clock_time_s(options.microbatches) * 1e9),
            options.straggler,
            Observer(self._iteration_ended, self._straggler),
        )

    def __enter__(self) -> EmulatedJob:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pids(self) -> tuple[int, ...]:
        """The workers' process ids, by rank."""
        return tuple(process.pid for process in self._processes)

    def iterations(self) -> tuple[IterationRecord, ...]:
        """Those that have ended so far."""
        return tuple(self._records)

    def check(self) -> None:
        """Raises PerseusError where a worker has died: the others wait for it for ever."""
        if (error := self._coordinator.error) is not None:
            raise PerseusError(f"the emulated job failed: {error!r}") from error
        for rank in self._coordinator.lost:
            process = self._processes[rank]
            status = process.poll()
            raise PerseusError(
                f"the emulated training process of stage {rank} (pid {process.pid}) died"
                f"{'' if status is None else f' with status {status}'}: the job cannot go on"
            )

    def start(self) -> None:
        """Returns when every worker is about to train. Raises PerseusError where one fails."""
        try:
            self._spawn()
            self._await_ready()
        except BaseException:
            self.stop()
            raise
        self._coordinator.start()

    def stop(self) -> None:
        """End every worker; those that do not end by themselves are killed."""
        self._coordinator.stop(_STOP_TIMEOUT_S)
        for control in self._controls:
            control.close()
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        for process in self._processes:
            try:
                process.wait(max(deadline - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._node.close()

    def _spawn(self) -> None:
        links = [_socket_pair() for _ in range(self.workload.stages - 1)]
        try:
            for rank in range(self.workload.stages):
                ours, theirs = _socket_pair()
                self._controls.append(ours)
                with theirs:
                    self._processes.append(_started(theirs, *_neighbours(links, rank)))
                ours.send(json.dumps(asdict(self._setup(rank))).encode())
        finally:
            for link in links:
                for end in link:
                    end.close()

    def _setup(self, rank: int) -> Setup:
        curves = {i: curve for (stage, i), curve in self.workload.curves.items() if stage == rank}
        return Setup(
            job=self.options.job,
            rank=rank,
            stages=self.workload.stages,
            node_path=str(self._node_path),
            runtime_dir=str(self._runtime_dir),
            order=[(c.instruction, c.microbatch) for c in self.orders[rank]],
            curves={i: (curve.time_s, curve.energy_j) for i, curve in curves.items()},
            communication_ns=round(self.workload.communication_s * 1e9),
            noise=self.options.noise,
            seed=self.options.seed,
            hooks=rank != self.options.missing_rank,
        )

    def _await_ready(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        for rank, control in enumerate(self._controls):
            control.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                answer = control.recv(MESSAGE_BYTES)
            except (TimeoutError, ConnectionError):
                answer = b""
            if not answer:
                raise PerseusError(f"the emulated training process of stage {rank} did not start")
            control.settimeout(None)

    def _iteration_ended(self, ended: Ended) -> None:
        record = IterationRecord(
            iteration=ended.iteration,
            start_ns=ended.start_ns,
            end_ns=ended.end_ns,
            energy_j=tuple(gpu.energy_j() for gpu in self._gpus),
            clock_writes=tuple(gpu.clock_writes() for gpu in self._gpus),
            spans=tuple(
                tuple(Span(c, *span) for c, span in zip(order, report["spans"], strict=True))
                for order, report in zip(self.orders, ended.reports, strict=True)
            ),
            straggling=ended.straggling,
        )
        self._records.append(record)

    def _straggler(self, straggling: bool) -> None:
        if self.options.on_straggler is not None:
            arguments = (straggling,)
            threading.Thread(target=self.options.on_straggler, args=arguments, daemon=True).start()


def _socket_pair() -> SocketPair:
    """Message boundaries are kept, and the other end's death is seen."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _neighbours(
    links: Sequence[SocketPair], rank: int
) -> tuple[socket.socket | None, socket.socket | None]:
    """This rank's ends of the links to the stages before and after it."""
    upstream = links[rank - 1][1] if rank > 0 else None
    downstream = links[rank][0] if rank < len(links) else None
    return upstream, downstream


def _started(
    control: socket.socket, upstream: socket.socket | None, downstream: socket.socket | None
) -> subprocess.Popen[bytes]:
    """A worker with these sockets, in a session of its own: Ctrl-C is for the launcher alone."""
    command = [sys.executable, "-m", "perseusd.emulation.worker"]
    inherited = []
    for name, end in (("control", control), ("upstream", upstream), ("downstream", downstream)):
        if end is not None:
            inherited.append(end.fileno())
            command.append(f"--{name}={end.fileno()}")
    return subprocess.Popen(
        command,
        pass_fds=inherited,
        stdin=subprocess.DEVNULL,
        env=own_environment(),
        start_new_session=True,
    )
