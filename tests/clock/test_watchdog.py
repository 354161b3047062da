"""What perseusd-clock tells systemd: that it is ready, and that its loop lives."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from perseusd.systemd import Pulse, notify

INTERVAL_S = 0.2


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """What systemd listens on, and the variables that it gives to a unit with a watchdog."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp_path / "notify"))
        heard.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", str(round(INTERVAL_S * 1e6)))
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        yield heard


def test_ready_once_it_listens_and_alive_while_its_loop_turns(
    make_room: Callable[..., Any], manager: socket.socket, tmp_path: Path
) -> None:
    """READY when the socket is there, signs of life though nothing happens, none when stopped."""
    listening = tmp_path / "clock.sock"
    command = [sys.executable, "-m", "perseusd.clock", "--socket", str(listening)]
    process = subprocess.Popen([*command, *make_room().arguments], stderr=subprocess.DEVNULL)
    try:
        assert manager.recv(99) == b"READY=1"
        assert listening.is_socket()
        assert [manager.recv(99) for _ in range(3)] == [b"WATCHDOG=1"] * 3
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.1)
        manager.setblocking(False)
        while True:
            try:
                manager.recv(99)
            except BlockingIOError:
                break
        time.sleep(2 * INTERVAL_S)
        with pytest.raises(BlockingIOError):
            manager.recv(99)
    finally:
        process.kill()
        process.wait()


def test_a_watchdog_of_another_process_is_not_fed(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child inherits its parent's variables, and proves nothing of the parent's life."""
    monkeypatch.setenv("WATCHDOG_PID", str(os.getppid()))
    pulse = Pulse()
    pulse.beat()
    assert pulse.due_ns() is None
    notify("STATUS=heard")
    assert manager.recv(99) == b"STATUS=heard"
