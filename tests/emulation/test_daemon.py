from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import zmq

from perseusd.emulation.daemon import DaemonProcess, ask
from perseusd.errors import DaemonUnreachableError, PerseusError


def answer_once(path: Path, answer: dict[str, object]) -> threading.Thread:
    """A ROUTER that answers one request, as the daemon's sockets do."""

    def serve() -> None:
        with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
            socket.setsockopt(zmq.LINGER, 1000)
            socket.bind(f"ipc://{path}")
            *envelope, _ = socket.recv_multipart()
            socket.send_multipart([*envelope, json.dumps(answer).encode()])

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_one_request_one_answer(tmp_path: Path) -> None:
    """JSON out, JSON in, over a REQ socket as any client would."""
    thread = answer_once(tmp_path / "status.sock", {"jobs": []})
    assert ask(tmp_path / "status.sock", {"command": "status"}) == {"jobs": []}
    thread.join()


def test_nobody_answers(tmp_path: Path) -> None:
    """An error that names the socket, soon."""
    with pytest.raises(DaemonUnreachableError, match=r"status\.sock"):
        ask(tmp_path / "status.sock", {}, timeout_s=0.1)


def test_a_refusal_is_an_error(tmp_path: Path) -> None:
    """What the daemon refuses is raised with its reason."""
    thread = answer_once(tmp_path / "control.sock", {"ok": False, "error": "no such job"})
    with pytest.raises(PerseusError, match=r"straggler_end.*no such job"):
        DaemonProcess(tmp_path, 1).control({"command": "straggler_end", "job": "x"})
    thread.join()


def test_a_daemon_that_cannot_start_is_quoted(tmp_path: Path) -> None:
    """Its last words are in the error, and it is not left behind."""
    (tmp_path / "simulated-gpus").write_text("nonsense")
    with pytest.raises(PerseusError, match="perseusd ended with status"):
        DaemonProcess(tmp_path, 1).start()


def test_the_leash_ends_its_command_when_its_holder_dies() -> None:
    """Standard input closes when the holder is killed; the command must not outlive that."""
    sleeper = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    leash = subprocess.Popen(
        [sys.executable, "-m", "perseusd.emulation.leash", sys.executable, "-c", sleeper],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with leash:
        assert leash.stdout is not None
        pid = int(leash.stdout.readline())
        assert leash.stdin is not None
        leash.stdin.close()
        assert leash.wait(10) != 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_leash_killed_takes_its_command_along() -> None:
    """Even SIGKILL of the leash ends the command: the kernel sees to it."""
    sleeper = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    leash = subprocess.Popen(
        [sys.executable, "-m", "perseusd.emulation.leash", sys.executable, "-c", sleeper],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with leash:
        assert leash.stdout is not None
        pid = int(leash.stdout.readline())
        leash.kill()
    deadline = time.monotonic() + 10
    while _running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _running(pid: int) -> bool:
    """Whether it lives; an orphan nobody has collected yet does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
