"""The daemon's end of a recording as it comes: bytes, until there are no more."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import zmq

from perseusd.ctl.connection import check_listening
from perseusd.ctl.control import refusal
from perseusd.errors import DaemonUnreachableError, PerseusError, ProtocolError

ANSWER_S = 5.0
"""For the beginning to come."""

SILENCE_S = 2.0
"""A daemon says something twenty times a second; after this long without, it is looked for."""

LONGEST_SILENCE_S = 30.0
"""A daemon that is there and says nothing for so long hangs."""

KEPT_BATCHES = 2000


class Stream:
    """A connection to record.sock; `batches` are whatever the daemon sends, as it is."""

    def __init__(self, path: Path) -> None:
        check_listening(path)
        self._path = path
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.RCVHWM, KEPT_BATCHES)
        self._socket.setsockopt(zmq.LINGER, 100)
        self._socket.connect(f"ipc://{path}")
        self._ask("record")

    def batches(self) -> Iterator[bytes]:
        """Empty while nothing has come for a moment.

        Raises DaemonUnreachableError when the daemon stops, dies or hangs, PerseusError where it
        refuses.
        """
        heard_s, patience_s = time.monotonic(), ANSWER_S
        while True:
            if not self._socket.poll(100):
                self._check_silence(time.monotonic() - heard_s, patience_s)
                yield b""
                continue
            heard_s, patience_s = time.monotonic(), LONGEST_SILENCE_S
            data = self._socket.recv()
            if not data:
                raise DaemonUnreachableError(f"{self._path}: perseusd has stopped")
            if data.startswith(b"{"):
                raise _refused(self._path, data)
            yield data

    def close(self) -> None:
        with contextlib.suppress(zmq.ZMQError):
            self._ask("stop")
        self._context.destroy(linger=100)

    def _ask(self, command: str) -> None:
        self._socket.send(json.dumps({"command": command}).encode(), zmq.NOBLOCK)

    def _check_silence(self, silent_s: float, patience_s: float) -> None:
        if silent_s < SILENCE_S:
            return
        check_listening(self._path)  # raises where nobody is there any more
        if silent_s >= patience_s:
            raise DaemonUnreachableError(
                f"{self._path}: perseusd has said nothing for {silent_s:.0f} s; it hangs or is "
                "stopped. See `systemctl status perseusd` and its log"
            )


def _refused(path: Path, data: bytes) -> PerseusError:
    try:
        return refusal({**json.loads(data)})
    except (ValueError, TypeError, RecursionError):
        return ProtocolError(
            f"{path}: the answer {data[:60]!r} is none; is this perseusd's socket?"
        )
