"""A real perseusd-clock on simulated GPUs, and small daemons to be killed and stopped."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nvml_build
import pytest

from perseusd.clock.client import ClockClient
from perseusd.clock.protocol import ResultCode, WriteResult
from perseusd.gpus.simulated import SPECS, SimulatedNode, create_node

PATIENCE_S = 10.0  # far above anything measured: the machine may be busy

_DAEMON = """
import socket, subprocess, sys, time
from perseusd.clock.client import ClockClient
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
clock = subprocess.Popen(
    [sys.executable, "-m", "perseusd.clock", "--fd", str(theirs.fileno()), *sys.argv[3:]],
    pass_fds=[theirs.fileno()],
)
theirs.close()
if sys.argv[2] == "with-child":  # holds our end of the socket, as a forked worker would
    child = subprocess.Popen(["sleep", "60"], pass_fds=[ours.fileno()])
else:
    child = clock
client = ClockClient(ours)
wanted = {client.lock(index, 1005) for index in range(int(sys.argv[1]))}
while True:
    client.heartbeat()
    before = len(wanted)
    wanted -= {result.request_id for result in client.results()}
    if before and not wanted:
        print("locked", clock.pid, child.pid, flush=True)
    time.sleep(0.02)
"""


def eventually(condition: Callable[[], object], patience_s: float = PATIENCE_S) -> bool:
    """Whether it comes true before patience ends."""
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


class Clock:
    """One running perseusd-clock over an inherited socket, and the daemon's end of it."""

    def __init__(self, arguments: list[str]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "perseusd.clock", "--fd", str(theirs.fileno()), *arguments],
            pass_fds=[theirs.fileno()],
            stderr=subprocess.PIPE,
            text=True,
        )
        theirs.close()
        self.client = ClockClient(ours)
        self.seen: list[WriteResult] = []

    def result(self, request_id: int) -> WriteResult:
        """The result of that request, keeping the heartbeat up while it is awaited."""

        def found() -> bool:
            self.client.heartbeat()
            self.seen += self.client.results()
            return any(result.request_id == request_id for result in self.seen)

        assert eventually(found), f"no result for request {request_id}"
        return next(result for result in self.seen if result.request_id == request_id)

    def leave(self) -> int:
        """Hang up; the exit code."""
        self.client.close()
        return self.process.wait(PATIENCE_S)

    def log(self) -> str:
        """What it wrote to standard error, once it has ended."""
        assert self.process.stderr is not None
        return self.process.stderr.read()


class Room:
    """A simulated node and a state directory, and processes that use them."""

    def __init__(self, folder: Path, count: int, write_latency_s: float) -> None:
        spec = replace(SPECS["a100-sxm"], write_latency_s=write_latency_s)
        self.node: SimulatedNode = create_node(folder / "node", spec, count)
        self.state = folder / "state"
        self.arguments = ["--state-dir", str(self.state), "--simulated", str(self.node.path)]
        self._processes: list[subprocess.Popen[str]] = []
        self._clocks: list[Clock] = []

    def start(self, *arguments: str) -> Clock:
        clock = Clock([*self.arguments, *arguments])
        self._processes.append(clock.process)
        self._clocks.append(clock)
        return clock

    def daemon(self, *arguments: str, child: bool = False) -> tuple[subprocess.Popen[str], int]:
        """A daemon of its own that has locked every GPU; and its clock process's pid."""
        count = str(len(self.node.gpus))
        with_child = "with-child" if child else "alone"
        daemon = subprocess.Popen(
            [sys.executable, "-c", _DAEMON, count, with_child, *self.arguments, *arguments],
            stdout=subprocess.PIPE,
            text=True,
        )
        self._processes.append(daemon)
        assert daemon.stdout is not None
        said, clock_pid, child_pid = daemon.stdout.readline().split()
        assert said == "locked"
        self.child_pid = int(child_pid)
        return daemon, int(clock_pid)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A clock process that ends by itself."""
        command = [sys.executable, "-m", "perseusd.clock", *arguments, *self.arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    @property
    def locks(self) -> list[int | None]:
        """What the simulated GPUs themselves say."""
        return [gpu.locked_mhz() for gpu in self.node.gpus]

    @property
    def unlocked(self) -> bool:
        return not any(self.locks)

    @property
    def intent(self) -> list[str]:
        path = self.state / "clock-intent.json"
        return list(json.loads(path.read_text())["may_be_locked"]) if path.exists() else []

    def close(self) -> None:
        for clock in self._clocks:
            clock.client.close()
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait(PATIENCE_S)
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        self.node.close()


Rooms = Callable[..., Room]


@pytest.fixture
def make_room(tmp_path: Path) -> Iterator[Rooms]:
    rooms: list[Room] = []

    def make(count: int = 2, write_latency_s: float = 0.005) -> Room:
        folder = tmp_path / f"room{len(rooms)}"
        folder.mkdir()
        rooms.append(Room(folder, count, write_latency_s))
        return rooms[-1]

    yield make
    for room in rooms:
        room.close()


@pytest.fixture
def left_locked(make_room: Rooms, nvml_library: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Three GPUs, on the fake NVML library, that a clock process which was killed left locked."""
    made = make_room(3)
    for name, value in nvml_build.environment(nvml_library, made.node.path).items():
        monkeypatch.setenv(name, value)
    made.arguments = ["--state-dir", str(made.state)]
    clock = made.start()
    for index in range(3):
        assert clock.result(clock.client.lock(index, 1005)).code is ResultCode.OK
    clock.process.kill()
    clock.process.wait()
    assert made.locks == [1005] * 3
    return made


@pytest.fixture
def wait_for() -> Callable[..., bool]:
    return eventually
