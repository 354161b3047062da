"""A daemon that only observes, beside real frameworks."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perseusd.emulation.daemon import ask
from perseusd.errors import DaemonUnreachableError
from tests.hooks.conftest import daemon, runtime_dir  # noqa: F401  fixtures

PATIENCE_S = 60.0
GPUS = 4


class Observer:
    """`perseusd run --observe` on simulated GPUs in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        run = [sys.executable, "-m", "perseusd", "run", "--runtime-dir", str(self.folder)]
        with (self.folder / "daemon.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*run, "--simulate", str(GPUS), "--observe"], stdout=log, stderr=log
            )
        deadline = time.monotonic() + PATIENCE_S
        while self._process.poll() is None and time.monotonic() < deadline:
            if (self.folder / "status.sock").exists():
                with contextlib.suppress(DaemonUnreachableError):
                    ask(self.folder / "status.sock", {"command": "status"})
                    return
            time.sleep(0.05)
        pytest.fail(f"no daemon: {(self.folder / 'daemon.log').read_text()}")

    def signal(self, number: int) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.signal(signal.SIGCONT)
            self._process.terminate()
            self._process.wait(20)


@contextlib.contextmanager
def _observer() -> Iterator[Observer]:
    with tempfile.TemporaryDirectory(prefix="perseusd-test-") as name:
        observer = Observer(Path(name))
        try:
            yield observer
        finally:
            observer.end()


@pytest.fixture
def make_observer() -> Iterator[Callable[[], Observer]]:
    """Makes daemons that the test starts and ends as it likes."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(_observer())


@pytest.fixture(scope="module")
def observed_folder() -> Iterator[Path]:
    """The runtime directory of a daemon that runs."""
    with _observer() as observer:
        observer.start()
        yield observer.folder
