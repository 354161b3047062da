"""A node on the fake NVML library, and on it daemon, clock process, planner, a job and a probe.

Everything is a process of its own, in a runtime directory of its own, so that several rigs run
beside each other. What befalls them is not decided here.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import mmap
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import IO, Any

from chaosparts.programs import PROBE, nvml_build
from perseusd.emulation.daemon import ask
from perseusd.emulation.job import EmulatedJob, JobOptions
from perseusd.emulation.workloads import Workload
from perseusd.errors import PerseusError
from perseusd.gpus.physics import WorkCurve
from perseusd.gpus.simulated import SPECS, SimulatedNode, create_node

STAGES = 3
GPUS = STAGES + 1  # the last one is the probe's
MICROBATCHES = 3
SILENCE_S = 1.0
PROBED = struct.Struct("@3q")  # calls, the longest one in ns, when the last one ended
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
_WALL = struct.Struct("@q")  # seconds by which the wall clock is off

# Iterations take 0.4 s; wide budgets, so that a busy machine is no reason to let go.
CONFIG = f"""
[limits]
slowdown_budget = 0.2
learning_slowdown = 0.3
max_writes_per_s = 15
max_node_write_share = 0.9
silence_s = {SILENCE_S}
[learning]
baseline_iterations = 3
max_iterations = 2
[sampler]
interval_s = 0.1
"""


def _work(top_s: float) -> WorkCurve:
    clocks = SPECS["a100-sxm"].supported_clocks_mhz
    times = tuple(top_s * clocks[-1] / clock for clock in clocks)
    powers = (90 + 300 * (clock / clocks[-1]) ** 3 for clock in clocks)
    return WorkCurve(times, tuple(p * t for p, t in zip(powers, times, strict=True)))


def _workload() -> Workload:
    curves = {}
    for stage, scale in enumerate((1.0, 0.5, 0.55)):
        curves[stage, "forward"] = _work(0.035 * scale)
        curves[stage, "backward"] = _work(0.07 * scale)
    return Workload("tiny", "a100-sxm", STAGES, MICROBATCHES, curves, 80.0, 0.0005, "made up")


def _end_with_us() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def send(pid: int | None, number: signal.Signals) -> bool:
    """Whether there was such a process."""
    if pid is None:
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def lives(pid: int | None) -> bool:
    """Whether it runs or is stopped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


class Rig:
    """start() makes daemon, job and probe; close() ends them. One thread uses it."""

    def __init__(self, library: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="chaos-"))
        self.folder.chmod(0o755)
        spec = dataclasses.replace(SPECS["a100-sxm"], write_latency_s=0.001, counter_tick_s=0.02)
        self.node: SimulatedNode = create_node(self.folder / "gpus", spec, GPUS)
        self._node_lock = self.folder / "node.lock"
        clock = f'[clock]\nnode_lock = "{self._node_lock}"\n'
        (self.folder / "perseusd.toml").write_text(CONFIG + clock)
        self.daemon: subprocess.Popen[str] | None = None
        self.job: EmulatedJob | None = None
        self.probe: subprocess.Popen[bytes] | None = None
        self.log: deque[str] = deque(maxlen=200)
        self.ready_s = 0.0  # when this daemon said that it is ready; 0: not yet
        self.descendants: set[int] = set()
        self._wall = self._mapped("wall-clock", _WALL.size)
        self._told = self._mapped("probe", PROBED.size)
        wall = {"CHAOS_WALL_CLOCK": str(self.folder / "wall-clock")}
        wall["LD_PRELOAD"] = str(library.parent / "wallclock.so")
        nvml = nvml_build.environment(library, self.node.path)
        self._environment = os.environ | nvml | wall | {"PYTHONFAULTHANDLER": "1"}

    # -- the daemon ----------------------------------------------------------------------------

    def start_daemon(self) -> None:
        """Does not wait until it is ready: see `ready_s`."""
        self.ready_s = 0.0
        command = [sys.executable, "-m", "perseusd", "run", "--runtime-dir", str(self.folder)]
        self.daemon = subprocess.Popen(
            [*command, "--config", str(self.folder / "perseusd.toml")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=self._environment,
            text=True,
            preexec_fn=_end_with_us,
        )
        assert self.daemon.stderr is not None
        reading = (self.daemon, self.daemon.stderr)
        threading.Thread(target=self._read, args=reading, daemon=True).start()

    @property
    def daemon_lives(self) -> bool:
        return self.daemon is not None and self.daemon.poll() is None

    def children(self) -> dict[str, int]:
        """The pids of the daemon's `clock` and `planner`, of those that live."""
        if self.daemon is None or not self.daemon_lives:
            return {}
        found, pid = {}, self.daemon.pid
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                    command = Path(f"/proc/{child}/cmdline").read_text().split("\0")
                    if "perseusd.clock" in command:
                        found["clock"] = int(child)
                    elif "perseusd.daemon.planner_process" in command:
                        found["planner"] = int(child)
        found = {name: pid for name, pid in found.items() if lives(pid)}
        self.descendants |= set(found.values())
        return found

    def restore(self) -> int:
        """What systemd runs when the clock process has ended; its exit code."""
        command = [sys.executable, "-m", "perseusd.clock", "--reset"]
        command += ["--state-dir", str(self.folder / "state" / "clock")]
        command += ["--node-lock", str(self._node_lock)]
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=60, check=False
        )
        self.log.extend(done.stderr.splitlines())
        return done.returncode

    def status(self, patience_s: float) -> dict[str, Any] | None:
        """None where the daemon does not answer by then."""
        try:
            return ask(self.folder / "status.sock", {"command": "status"}, patience_s)
        except PerseusError:
            return None

    def set_wall_clock(self, offset_s: int) -> None:
        """For the daemon and what it starts, from now on."""
        self._wall[: _WALL.size] = _WALL.pack(offset_s)

    # -- the job and the probe -----------------------------------------------------------------

    def start_job(self) -> None:
        self.stop_job()
        options = JobOptions(microbatches=MICROBATCHES, job="tiny")
        self.job = EmulatedJob(_workload(), self.node.path, self.folder, options)
        self.job.start()

    def stop_job(self) -> None:
        job, self.job = self.job, None
        if job is not None:
            for pid in job.pids:
                send(pid, signal.SIGCONT)
            job.stop()

    def start_probe(self) -> None:
        uuid = self.node.gpus[GPUS - 1].info.uuid
        arguments = [str(self.folder / "probe"), uuid, str(os.getpid())]
        self.probe = subprocess.Popen(
            [sys.executable, "-c", PROBE, *arguments],
            env=os.environ | {"PERSEUS_RUNTIME_DIR": str(self.folder)},
        )

    def probed(self) -> tuple[int, float, float]:
        """How many hook calls were made, the longest one since it was asked last, in seconds, and
        when the last one ended."""
        calls, longest_ns, last_ns = PROBED.unpack_from(self._told)
        self._told[: PROBED.size] = PROBED.pack(calls, 0, last_ns)
        return calls, longest_ns * 1e-9, last_ns * 1e-9

    def iterations(self) -> int:
        return 0 if self.job is None else len(self.job.iterations())

    @property
    def ranks(self) -> tuple[int, ...]:
        return () if self.job is None else self.job.pids

    # -- the end -------------------------------------------------------------------------------

    def stop_daemon(self) -> int | None:
        """SIGTERM; its exit code, or None where it had to be killed. Nobody it started is left."""
        code = None
        if self.daemon is not None:
            for pid in {self.daemon.pid, *self.children().values()}:
                send(pid, signal.SIGCONT)
            self.daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self.daemon.wait(15)
            self.daemon.kill()
            self.daemon.wait()
        deadline = time.monotonic() + 10
        while left := [pid for pid in self.descendants if lives(pid)]:
            if time.monotonic() > deadline:
                for pid in left:
                    send(pid, signal.SIGKILL)
                return None
            time.sleep(0.02)
        return code

    def close(self) -> None:
        self.stop_daemon()
        self.stop_job()
        if self.probe is not None:
            self.probe.kill()
            self.probe.wait()
        self.node.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, daemon: subprocess.Popen[str], lines: IO[str]) -> None:
        for line in lines:
            self.log.append(line.rstrip())
            if " ready: " in line and daemon is self.daemon:
                self.ready_s = time.monotonic()
        lines.close()

    def _mapped(self, name: str, size: int) -> mmap.mmap:
        path = self.folder / name
        path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            return mmap.mmap(file.fileno(), 0)
