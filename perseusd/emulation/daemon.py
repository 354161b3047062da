"""The daemon as the demo's child: started, asked and stopped as any user would."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import zmq

from perseusd.emulation.environment import own_environment
from perseusd.emulation.leash import GRACE_S
from perseusd.errors import DaemonUnreachableError, PerseusError

ASK_TIMEOUT_S = 2.0
_START_TIMEOUT_S = 30.0
_LOG_LINES = 12

Answer = dict[str, Any]


def ask(socket_path: Path, request: Mapping[str, Any], timeout_s: float = ASK_TIMEOUT_S) -> Answer:
    """One request, one answer. Raises DaemonUnreachableError where none comes in time."""
    socket: zmq.Socket[bytes]
    with zmq.Context.instance().socket(zmq.REQ) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(f"ipc://{socket_path}")
        socket.send(json.dumps(request).encode())
        if not socket.poll(int(timeout_s * 1000)):
            raise DaemonUnreachableError(f"the daemon at {socket_path} did not answer in time")
        answer: Answer = json.loads(socket.recv())
    return answer


class DaemonProcess:
    """`perseusd run` on simulated GPUs under `runtime_dir`; it ends when this process does.

    Its log goes to `daemon.log` there.
    """

    def __init__(self, runtime_dir: Path, gpus: int) -> None:
        self._runtime_dir = runtime_dir
        self._log_path = runtime_dir / "daemon.log"
        self._gpus = gpus
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> DaemonProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when the daemon answers. Raises PerseusError with its last words otherwise."""
        run = ["perseusd", "run", "--simulate", str(self._gpus)]
        run += ["--runtime-dir", str(self._runtime_dir)]
        python = [sys.executable, "-m"]
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [*python, "perseusd.emulation.leash", *python, *run],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=own_environment(),
                start_new_session=True,
            )
        try:
            self._await_answer()
        except BaseException:
            self.stop()
            raise

    def status(self) -> Answer:
        return ask(self._runtime_dir / "status.sock", {"command": "status"})

    def control(self, request: Mapping[str, Any]) -> None:
        """Raises PerseusError where the daemon refuses."""
        answer = ask(self._runtime_dir / "control.sock", request)
        if not answer.get("ok"):
            why = answer.get("error", "no reason given")
            raise PerseusError(f"the daemon refused {request['command']}: {why}")

    def check(self) -> None:
        """Raises PerseusError where the daemon has ended."""
        if self._process is not None and (status := self._process.poll()) is not None:
            raise PerseusError(f"perseusd ended with status {status}{self._last_words()}")

    def stop(self) -> None:
        """Ask it to end, and see to it that it does."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(GRACE_S + 1)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _await_answer(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            self.check()
            if (self._runtime_dir / "status.sock").exists():
                try:
                    self.status()
                except DaemonUnreachableError:
                    continue
                return
            time.sleep(0.05)
        raise PerseusError(
            f"perseusd did not answer within {_START_TIMEOUT_S:g} s{self._last_words()}"
        )

    def _last_words(self) -> str:
        lines = self._log_path.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        return "; its last words:\n  " + "\n  ".join(lines) if lines else ", without a word"
