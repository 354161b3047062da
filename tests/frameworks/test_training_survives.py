"""A real training run beside a real daemon that is killed, stopped, restarted or not there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from perseusd.emulation.daemon import ask
from tests.frameworks.conftest import Observer

TRAINING = Path(__file__).with_name("training.py")
PATIENCE_S = 60.0


class Run:
    """The training process: `train` returns what came out."""

    def __init__(self, runtime_dir: str, enabled: bool) -> None:
        environ = {**os.environ, "PERSEUS_RUNTIME_DIR": runtime_dir, "PERSEUS_JOB": "survivor"}
        environ |= {"PERSEUS_ENABLED": "1" if enabled else "0", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(TRAINING)],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def train(self, iterations: int, threads: int) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{iterations} {threads}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()

    def end(self) -> str:
        """What it wrote to standard error; it must have ended by itself, and well."""
        _, errors = self._process.communicate(timeout=PATIENCE_S)
        assert self._process.returncode == 0, errors
        return errors

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def running(runtime_dir: str, enabled: bool = True) -> Iterator[Run]:
    run = Run(runtime_dir, enabled)
    try:
        yield run
    finally:
        run.kill()


def known(observer: Observer) -> bool:
    """Whether the daemon knows of the job; it is given time to read what was sent."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        jobs = ask(observer.folder / "status.sock", {"command": "status"})["jobs"]
        if any("survivor" in job["id"] for job in jobs):
            return True
        time.sleep(0.05)
    return False


PHASES = ((3, 0), (5, 32), (3, 0), (3, 0), (400, 0), (3, 0), (200, 0))
"""Iterations, and threads beside them."""


@pytest.fixture(scope="module")
def undisturbed() -> list[str]:
    """What comes out with the hooks switched off."""
    with running("/nonexistent", enabled=False) as run:
        came_out = [run.train(*phase) for phase in PHASES]
        run.end()
    assert all(came_out)
    return came_out


def test_training_comes_out_the_same_whatever_becomes_of_the_daemon(
    undisturbed: list[str], make_observer: Callable[[], Observer]
) -> None:
    """No daemon, one that starts, is killed, is started anew, hangs with full queues, goes on, and
    hangs at the trainer's exit; forked workers and 32 other threads beside it."""
    observer = make_observer()
    with running(str(observer.folder)) as run:
        came_out = [run.train(*PHASES[0])]
        observer.start()
        came_out.append(run.train(*PHASES[1]))
        assert known(observer)
        observer.kill()
        came_out.append(run.train(*PHASES[2]))
        observer.start()
        came_out.append(run.train(*PHASES[3]))
        observer.signal(signal.SIGSTOP)
        came_out.append(run.train(*PHASES[4]))
        observer.signal(signal.SIGCONT)
        came_out.append(run.train(*PHASES[5]))
        assert known(observer)
        observer.signal(signal.SIGSTOP)
        came_out.append(run.train(*PHASES[6]))
        errors = run.end()
        observer.signal(signal.SIGCONT)
    assert came_out == undisturbed
    assert "Traceback" not in errors
    assert "Error" not in errors


def test_training_comes_out_the_same_where_no_socket_can_be(undisturbed: list[str]) -> None:
    """`test_client.py` has more places where none can be: no folder, a path too long, …"""
    with running("/dev/null") as run:
        assert run.train(*PHASES[0]) == undisturbed[0]
        assert run.end() == ""
