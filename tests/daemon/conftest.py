"""A real daemon, its clock process and a small emulated job, to be killed, stopped and questioned.

Everything runs as processes of their own. What the clocks are is read from the simulated GPUs.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq
from nvml_build import environment
from perseus_hooks.events import Event, Goodbye, Hello, StageEnd, StageStart
from perseus_hooks.wire import decode, encode

from perseusd.emulation.daemon import ask
from perseusd.emulation.job import EmulatedJob, JobOptions
from perseusd.emulation.workloads import Workload
from perseusd.errors import DaemonUnreachableError
from perseusd.gpus.physics import WorkCurve
from perseusd.gpus.simulated import SPECS, SimulatedNode, create_node

GPU = "a100-sxm"
STAGES = 4
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1

PATIENCE_S = 40.0  # far above anything measured: the machine may be busy

CONFIG = (Path(__file__).parents[1] / "soon_held.toml").read_text(encoding="utf-8")


def _work(top_s: float) -> WorkCurve:
    clocks = SPECS[GPU].supported_clocks_mhz
    times = tuple(top_s * clocks[-1] / clock for clock in clocks)
    powers = (90 + 300 * (clock / clocks[-1]) ** 3 for clock in clocks)
    return WorkCurve(times, tuple(p * t for p, t in zip(powers, times, strict=True)))


def _workload() -> Workload:
    """Four uneven stages: all but the first have slack."""
    curves = {}
    for stage, scale in enumerate((1.0, 0.6, 0.8, 0.7)):
        curves[stage, "forward"] = _work(0.025 * scale)
        curves[stage, "backward"] = _work(0.05 * scale)
    return Workload(
        name="tiny",
        gpu=GPU,
        stages=STAGES,
        microbatches=4,
        curves=curves,
        blocking_power_w=80.0,
        communication_s=0.001,
        source="made up",
    )


def until(
    condition: Callable[[], Any], patience_s: float = PATIENCE_S, poll_s: float = 0.005
) -> Any:
    """The condition's first true value, or a failed test."""
    deadline = time.monotonic() + patience_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {patience_s:g} s in vain")
        time.sleep(poll_s)
    return value


def lives(pid: int) -> bool:
    """Whether it runs or is stopped; one that nobody has collected yet does not live."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _end_with_the_tests() -> None:
    """Even if pytest is killed: SIGTERM to the daemon, which ends its own processes."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Rig:
    """A runtime directory with simulated GPUs, and in it at most one daemon and one job.

    nvml: the fake NVML library, for a daemon that takes the GPUs for real ones.
    """

    def __init__(
        self, folder: Path, gpus: int = STAGES, config: str = CONFIG, nvml: Path | None = None
    ) -> None:
        self.folder = folder
        self.gpus = gpus
        self.nvml = nvml
        self.node: SimulatedNode = create_node(folder / "simulated-gpus", SPECS[GPU], gpus)
        self.daemon: subprocess.Popen[bytes] | None = None
        self.job: EmulatedJob | None = None
        self.log = folder / "daemon.log"
        self._descendants: set[int] = set()
        (folder / "perseusd.toml").write_text(config)

    def command(self, *arguments: str) -> list[str]:
        run = [sys.executable, "-m", "perseusd", "run", "--runtime-dir", str(self.folder)]
        run += ["--config", str(self.folder / "perseusd.toml")]
        simulate = [] if self.nvml else ["--simulate", str(self.gpus)]
        return [*run, *simulate, *arguments]

    def environment(self) -> dict[str, str]:
        """The daemon's: where it uses the fake library, that library is its driver's."""
        nvml = environment(self.nvml, self.node.path) if self.nvml else {}
        return os.environ | nvml

    def start(self, *arguments: str) -> None:
        """Returns when the daemon answers and, if it has one, its clock process says hello."""
        with self.log.open("ab") as log:
            self.daemon = subprocess.Popen(
                self.command(*arguments),
                stdout=log,
                stderr=log,
                env=self.environment(),
                preexec_fn=_end_with_the_tests,
            )
        until(self._answers, poll_s=0.02)
        self.children()

    def _answers(self) -> bool:
        assert self.daemon is not None
        assert self.daemon.poll() is None, self.log.read_text()
        with contextlib.suppress(DaemonUnreachableError):
            return bool(self.status(timeout_s=0.5))
        return False

    def start_job(self, **options: Any) -> EmulatedJob:
        chosen = dataclasses.replace(JobOptions(microbatches=4, job="tiny"), **options)
        self.job = EmulatedJob(_workload(), self.node.path, self.folder, chosen)
        self.job.start()
        return self.job

    def hold(self) -> None:
        """See to it that a job is held; returns at a moment when its clocks are lowered."""
        if self.daemon is None or self.daemon.poll() is not None:
            self.start()
        if self.job is None or not all(lives(pid) for pid in self.job.pids):
            self.stop_job()
            self.start_job()
        until(lambda: self.state() == "hold", poll_s=0.05)
        until(lambda: len(self.locked()) >= 2)

    def locked(self) -> list[int]:
        """The clocks that are locked, as the simulated GPUs say."""
        return [mhz for gpu in self.node.gpus if (mhz := gpu.locked_mhz()) is not None]

    def seconds_locked(self, since_s: float, limit_s: float) -> float:
        """How long after since_s some simulated GPU was still locked.

        Watches for longer than limit_s, so that a clock that is lowered again counts.
        """
        last_s = since_s
        while (now := time.monotonic()) < since_s + limit_s + 0.7:
            if self.locked():
                last_s = now
            time.sleep(0.002)
        sys.stdout.write(f"unlocked after {last_s - since_s:.3f} s (limit {limit_s:g} s)\n")
        return last_s - since_s

    def status(self, timeout_s: float = 5.0) -> dict[str, Any]:
        return ask(self.folder / "status.sock", {"command": "status"}, timeout_s)

    def control(self, request: object) -> dict[str, Any]:
        return ask(self.folder / "control.sock", request)  # type: ignore[arg-type]

    def job_status(self) -> Mapping[str, Any] | None:
        return next((job for job in self.status()["jobs"] if job["id"].endswith(":tiny")), None)

    def state(self) -> str | None:
        job = self.job_status()
        return None if job is None else str(job["state"])

    def announced(self) -> list[dict[str, Any]]:
        """The job's stragglers by an operator's word; a busy machine makes some of its own."""
        job = self.job_status()
        stragglers = [] if job is None else job["stragglers"]
        return [straggler for straggler in stragglers if straggler["cause"] == "announced"]

    def states(self) -> list[str]:
        """Those that the job has been in, oldest first."""
        job = self.job_status()
        return [] if job is None else [entry["state"] for entry in job["states"]]

    def lowered(self, clocks: int = 2) -> int:
        """Wait until it is held with so many clocks lowered; how many states it was in by then.

        A job that has just been let go has clocks lowered too, until they are put back.
        """

        def known() -> int:
            states = self.states()
            return len(states) if states[-1:] == ["hold"] and len(self.locked()) >= clocks else 0

        return int(until(known))

    def held_again(self, known: int) -> list[str]:
        """Wait until the job has left hold and is held again; its states after the known first.

        To ask for hold alone would be too early: what makes it leave may be still to come.
        """

        def since() -> list[str]:
            states = self.states()[known:]
            return states if states[-1:] == ["hold"] else []

        return until(since, poll_s=0.05)

    def refused(self, part: str) -> Mapping[str, Any] | None:
        """The counted refusal whose reason has this part."""
        refused = self.status()["daemon"]["refused"]
        return next((r for r in refused if part in r["reason"]), None)

    def children(self) -> dict[str, int]:
        """The daemon's processes by module."""
        assert self.daemon is not None
        found = {}
        for child in psutil.Process(self.daemon.pid).children():
            with contextlib.suppress(psutil.Error):
                command = child.cmdline()
                if "-m" in command:
                    found[command[command.index("-m") + 1]] = child.pid
        self._descendants |= set(found.values())
        return found

    def clock_pid(self) -> int:
        return self.children()["perseusd.clock"]

    def left_behind(self) -> list[int]:
        """Processes that the daemon started and that live."""
        return [pid for pid in self._descendants if lives(pid)]

    def stop_job(self) -> None:
        job, self.job = self.job, None
        if job is not None:
            job.stop()

    def stop(self) -> None:
        self.stop_job()
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.send_signal(signal.SIGCONT)
            self.daemon.terminate()
            try:
                self.daemon.wait(20)
            finally:
                self.daemon.kill()
                self.daemon.wait()
        until(lambda: not self.left_behind(), 20)

    def close(self) -> None:
        try:
            self.stop()
        finally:
            for pid in self.left_behind():
                os.kill(pid, signal.SIGKILL)
            self.node.close()


class Peer:
    """A client that says exactly what it is told to, over a socket of its own."""

    def __init__(self, folder: Path) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.connect(f"ipc://{folder}/hooks.sock")

    def send(self, *frames: bytes | Event) -> None:
        self.socket.send_multipart([f if isinstance(f, bytes) else encode(f) for f in frames])

    def hear(self, patience_s: float = 5.0) -> Event:
        if not self.socket.poll(int(patience_s * 1000)):
            pytest.fail("the daemon said nothing")
        return decode(self.socket.recv())

    def hears_nothing(self, for_s: float) -> bool:
        return not self.socket.poll(int(for_s * 1000))

    def close(self) -> None:
        """With a goodbye: its process lives on, and so would its lease."""
        with contextlib.suppress(zmq.ZMQError):
            self.socket.send(encode(Goodbye(2**62, 1)), zmq.NOBLOCK)
        self._context.destroy(linger=500)


def hello(
    job: str = "peer",
    *,
    rank: int = 0,
    stage: int | None = 0,
    stages: int | None = 2,
    gpus: Sequence[str] = (),
) -> Hello:
    return Hello(
        job=job,
        rank=rank,
        world_size=stages,
        local_rank=rank,
        stage=stage,
        stages=stages,
        replica=0,
        replicas=1,
        schedule="1f1b",
        gpus=tuple(gpus),
        time_source="emulated",
        uses_cuda=False,
        slowdown_budget=None,
        hostname="here",
    )


def start(sequence: int, microbatch: int = 0, iteration: int | None = 0) -> StageStart:
    now = time.monotonic_ns()
    return StageStart(sequence, now, sequence, "forward", microbatch, 0, None, iteration)


def end(sequence: int, token: int) -> StageEnd:
    return StageEnd(sequence, time.monotonic_ns(), token)


def goodbye(sequence: int) -> Goodbye:
    return Goodbye(sequence, time.monotonic_ns())


class Helpers:
    """What tests of this folder call."""

    GPU = GPU
    STAGES = STAGES
    CONFIG = CONFIG
    Rig = Rig
    until = staticmethod(until)
    lives = staticmethod(lives)
    hello = staticmethod(hello)
    start = staticmethod(start)
    end = staticmethod(end)
    goodbye = staticmethod(goodbye)


@pytest.fixture(scope="session")
def helpers() -> type[Helpers]:
    return Helpers


def _new_folder() -> Path:
    """Open to other users, as /run/perseusd is, and short enough for socket paths."""
    folder = Path(tempfile.mkdtemp(prefix="perseusd-test-"))
    folder.chmod(0o755)
    return folder


@contextlib.contextmanager
def _rig(**options: Any) -> Iterator[Rig]:
    folder = _new_folder()
    made = Rig(folder, **options)
    try:
        yield made
    finally:
        try:
            made.close()
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    """One daemon and job for all tests of a file, each of which calls `hold()` or `start()`."""
    with _rig() as made:
        yield made


@pytest.fixture(scope="module")
def make_module_rig() -> Iterator[Callable[..., Rig]]:
    """Makes a rig for all tests of a file."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(_rig(**options))


@pytest.fixture
def make_rig() -> Iterator[Callable[..., Rig]]:
    """Makes rigs of a test's own."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(_rig(**options))


@pytest.fixture
def make_peer() -> Iterator[Callable[[Rig], Peer]]:
    with contextlib.ExitStack() as stack:

        def make(rig: Rig) -> Peer:
            peer = Peer(rig.folder)
            stack.callback(peer.close)
            return peer

        yield make
