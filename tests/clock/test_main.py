"""The perseusd-clock command: its arguments, its exit codes, its socket."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perseusd.clock.client import ClockClient
from perseusd.errors import DaemonUnreachableError

Rooms = Callable[..., Any]
Waiter = Callable[..., bool]


def clock(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "perseusd.clock", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=30, check=False, **options
    )


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--fd", "0"],
        ["--res", "--state-dir", "x"],
        ["--reset", "--fd", "0", "--state-dir", "x"],
        ["--fd", "x", "--state-dir", "x"],
        ["--reset", "--state-dir", "x", "--min-clock-fraction", "0"],
        ["--reset", "--state-dir", "x", "--min-clock-fraction", "1.5"],
        ["--reset", "--state-dir", "x", "--heartbeat-timeout", "nan"],
    ],
)
def test_wrong_usage_exits_2(arguments: list[str], tmp_path: Path) -> None:
    """Missing, contradicting or impossible arguments: exit code 2, and nothing was made."""
    path = os.pathsep.join([str(Path.cwd()), *sys.path])
    done = clock(*arguments, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 2
    assert "usage:" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_descriptor_that_is_no_socket_exits_2(make_room: Rooms) -> None:
    """A wrong --fd is named."""
    done = make_room().run("--fd", "0")
    assert done.returncode == 2
    assert "--fd 0" in done.stderr


@pytest.mark.parametrize(
    "arguments", [["--socket", "missing/clock.sock"], ["--socket", "s", "--allow-user", "no one"]]
)
def test_wrong_configuration_exits_78(
    make_room: Rooms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    """A socket that cannot be made and a user that does not exist are named."""
    path = os.pathsep.join([str(Path.cwd()), *sys.path])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.chdir(tmp_path)
    done = make_room().run(*arguments)
    assert done.returncode == 78
    assert arguments[-1] in done.stderr


def test_missing_gpus_exit_1(make_room: Rooms) -> None:
    """A simulated file that is not there is named, exit code 1."""
    room = make_room()
    room.node.path.unlink()
    done = room.run("--socket", str(room.state / "clock.sock"))
    assert done.returncode == 1
    assert str(room.node.path) in done.stderr


def test_other_packages_are_not_loaded(make_room: Rooms) -> None:
    """The privileged process is small: none of the daemon's dependencies is in it."""
    program = (
        "import sys, perseusd.clock.main, perseusd.gpus.simulated; "
        "print([m for m in ('numpy', 'zmq', 'msgpack', 'psutil', 'pynvml', 'rich', 'asyncio') "
        "if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout == "[]\n"


def test_socket_for_another_user_is_for_the_group(make_room: Rooms, wait_for: Waiter) -> None:
    """With a daemon of another user the socket is open to owner and group, to nobody else."""
    room = make_room(1)
    path = room.state / "clock.sock"
    room.state.mkdir()
    command = [sys.executable, "-m", "perseusd.clock", "--socket", str(path), *room.arguments]
    with subprocess.Popen([*command, "--allow-user", str(os.getuid() + 1)]) as process:
        try:
            assert wait_for(path.exists)
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
        finally:
            process.terminate()


def test_listening_process(make_room: Rooms, wait_for: Waiter) -> None:
    """Over --socket: readable by its user alone, serves, puts back on EOF, goes with its socket; a
    second one is refused, and a socket left by a killed one is no obstacle."""
    room = make_room()
    path = room.state / "clock.sock"
    command = [sys.executable, "-m", "perseusd.clock", "--socket", str(path), *room.arguments]
    room.state.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as left_over:
        left_over.bind(str(path))
    with pytest.raises(DaemonUnreachableError, match="is it running"):
        ClockClient.connect(path)
    with subprocess.Popen(command) as process:
        try:
            clients: list[ClockClient] = []

            def connected() -> bool:
                try:
                    clients.append(ClockClient.connect(path))
                except DaemonUnreachableError:
                    return False
                return True

            assert wait_for(connected)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            clients[0].lock(0, 1005)
            assert wait_for(lambda: room.locks == [1005, None])
            second = room.run("--socket", str(path))
            assert second.returncode == 78
            assert "another perseusd-clock" in second.stderr
            clients[0].close()
            assert wait_for(lambda: room.unlocked)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
            assert not path.exists()
        finally:
            process.kill()
