"""A stand-in daemon on a real socket, and training scripts in real processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import perseus_hooks
import perseus_hooks.calls
import perseus_hooks.connection
import pytest
import zmq
from perseus_hooks.events import Event
from perseus_hooks.wire import decode, encode

PATIENCE_S = 20.0  # a loaded machine may be slow; nothing passes or fails by less

# A script that must be heard says everything, however slowly this machine connects.
PATIENT = """
import perseus_hooks.calls, perseus_hooks.connection
perseus_hooks.calls.CONNECT_MS = 5000
perseus_hooks.connection.GOODBYE_MS = 5000
"""

PEER = """
import sys, zmq
socket = zmq.Context().socket(zmq.ROUTER)
socket.bind("ipc://" + sys.argv[1] + "/hooks.sock")
print("bound", flush=True)
count = 0
while True:
    idle = not socket.poll(1000)
    if idle and count:
        print(count, flush=True)
        count = 0
    while not idle and socket.poll(0):
        socket.recv_multipart()
        count += 1
"""


class Daemon:
    """A ROUTER on the hook socket that remembers what it was told and answers when asked to."""

    def __init__(self, runtime_dir: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(f"ipc://{runtime_dir}/hooks.sock")
        self.events: list[Event] = []
        self.messages: list[bytes] = []
        self.identity = b""

    def receive(self, wait_s: float = 0.3, most: int = 100_000) -> list[Event]:
        """What has come since the last call, until nothing came for wait_s."""
        fresh: list[Event] = []
        while len(fresh) < most and self._socket.poll(wait_s * 1000):
            self.identity, data = self._socket.recv_multipart()
            self.messages.append(data)
            fresh.append(decode(data))
        self.events += fresh
        return fresh

    def send(self, event: Event) -> None:
        self._socket.send_multipart([self.identity, encode(event)])

    def send_bytes(self, data: bytes) -> None:
        self._socket.send_multipart([self.identity, data])

    def stop(self) -> None:
        self._socket.close()
        self._context.term()


class Scripts:
    """Starts Python processes that see this runtime folder, and ends those that are left."""

    def __init__(self, runtime_dir: str) -> None:
        self._runtime_dir = runtime_dir
        self._started: list[subprocess.Popen[str]] = []

    def start(
        self, code: str, *arguments: str, patient: bool = False, **variables: str
    ) -> subprocess.Popen[str]:
        code = PATIENT + code if patient else code
        environ = {"PATH": os.environ["PATH"], "PERSEUS_RUNTIME_DIR": self._runtime_dir}
        process = subprocess.Popen(
            [sys.executable, "-X", "dev", "-c", code, *arguments],
            env={**environ, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def run(self, code: str, *arguments: str, patient: bool = False, **variables: str) -> str:
        """The script's output; fails where it does not end, or ends in any way but well."""
        process = self.start(code, *arguments, patient=patient, **variables)
        output, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, errors
        assert "Warning" not in errors, errors
        assert "Traceback" not in errors, errors
        return output

    def peer(self) -> subprocess.Popen[str]:
        """A consumer in a process of its own, so that it can be stopped or killed."""
        process = self.start(PEER, self._runtime_dir)
        assert process.stdout is not None
        assert process.stdout.readline() == "bound\n"
        return process

    def end(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture
def runtime_dir() -> Iterator[str]:
    """A folder with a short path: a Unix socket's has at most 107 bytes."""
    folder = tempfile.mkdtemp(prefix="perseus-")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def daemon(runtime_dir: str) -> Iterator[Daemon]:
    daemon = Daemon(runtime_dir)
    yield daemon
    daemon.stop()


@pytest.fixture
def scripts(runtime_dir: str) -> Iterator[Scripts]:
    scripts = Scripts(runtime_dir)
    yield scripts
    scripts.end()


@pytest.fixture(autouse=True)
def _fresh_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test finds the hooks as a new process would, and no launcher's variables."""
    for name in list(os.environ):
        if name.startswith(("PERSEUS_", "SLURM_", "OMPI_", "PMI_", "JAX_", "CUDA_", "MASTER_")):
            monkeypatch.delenv(name)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(perseus_hooks.calls, "_process", perseus_hooks.calls._Process())
    monkeypatch.setattr(perseus_hooks.calls, "CONNECT_MS", 5000)
    monkeypatch.setattr(perseus_hooks.connection, "GOODBYE_MS", 5000)
    yield
    perseus_hooks.close()


Until = Callable[[Callable[[], Any]], Any]


@pytest.fixture
def until() -> Until:
    """Calls a condition again and again; its first true value, or a failed test."""

    def until(condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            value = condition()
            if value:
                return value
            time.sleep(0.02)
        pytest.fail("waited too long")

    return until


@pytest.fixture
def daemon_class() -> type[Daemon]:
    """For tests in which daemons come and go."""
    return Daemon
