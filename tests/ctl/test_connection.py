"""Asking the daemon: every way in which no answer comes is told apart, with its fix."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from perseusd.ctl.connection import ask
from perseusd.errors import DaemonUnreachableError, NotPermittedError, ProtocolError

REQUEST = {"command": "status"}


def test_a_request_and_its_answer(stand_in, tmp_path: Path) -> None:
    """One JSON frame goes there and one comes back, as REQ to ROUTER."""
    stand_in.answers({"ok": True})
    assert ask(tmp_path / "status.sock", REQUEST) == {"ok": True}
    assert stand_in.requests == [REQUEST]


def test_no_daemon(tmp_path: Path) -> None:
    """Without a socket the error comes at once, names the path and asks the right question."""
    started = time.monotonic()
    with pytest.raises(DaemonUnreachableError) as caught:
        ask(tmp_path / "status.sock", REQUEST, timeout_s=60)
    assert time.monotonic() - started < 30
    for part in (str(tmp_path / "status.sock"), "no such socket", "systemctl status perseusd"):
        assert part in str(caught.value)
    assert "PERSEUS_RUNTIME_DIR" in str(caught.value)


def test_a_socket_left_behind(tmp_path: Path) -> None:
    """The file of a daemon that was killed is not mistaken for a daemon that hangs."""
    path = tmp_path / "status.sock"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    with pytest.raises(DaemonUnreachableError, match="nobody listens"):
        ask(path, REQUEST, timeout_s=60)


def test_a_daemon_whose_loop_hangs(stand_in, tmp_path: Path) -> None:
    """A daemon that takes the request and never answers is given up after the time limit."""
    with pytest.raises(DaemonUnreachableError, match=r"did not answer within 0.2 s"):
        ask(tmp_path / "status.sock", REQUEST, timeout_s=0.2)
    with pytest.raises(DaemonUnreachableError, match=r"this machine is busy; try again.*restart"):
        ask(tmp_path / "status.sock", REQUEST, timeout_s=0.2)


def test_a_stopped_process(tmp_path: Path) -> None:
    """A stopped process (its kernel queue still takes connections) is given up likewise."""
    path = tmp_path / "status.sock"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        with pytest.raises(DaemonUnreachableError, match="hangs or is stopped"):
            ask(path, REQUEST, timeout_s=0.2)


@pytest.mark.parametrize(
    "frames",
    [[b"\xff\x00"], [b"{"], [b"[]"], [b""], [b"{}", b"{}"], [b"[" * 100_000]],
    ids=["bytes", "cut", "list", "empty", "two frames", "deep"],
)
def test_a_malformed_answer(stand_in, tmp_path: Path, frames: list[bytes]) -> None:
    """Whatever a foreign socket answers is refused in words, not with a traceback."""
    stand_in.answer = lambda request: frames
    with pytest.raises(ProtocolError, match="this version"):
        ask(tmp_path / "status.sock", REQUEST)


def test_numbers_that_json_does_not_have(stand_in, tmp_path: Path) -> None:
    """NaN and infinities become null, so that --json output stays JSON."""
    stand_in.answer = lambda request: [b'{"a": NaN, "b": -Infinity, "c": 1e999, "d": 1.5}']
    answer = ask(tmp_path / "status.sock", REQUEST)
    assert answer == {"a": None, "b": None, "c": None, "d": 1.5}


def test_a_socket_that_this_user_may_not_open(
    stand_in, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No permission is its own error, with who may instead of whether it runs."""

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("socket.socket.connect", refuse)
    with pytest.raises(NotPermittedError, match="member of the group"):
        ask(tmp_path / "control.sock", REQUEST)
