"""Request and answer sockets: JSON text in one frame, JSON text back, for any REQ client."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import zmq

Answerer = Callable[[int, object], Mapping[str, Any]]
"""(uid of who asks, the request) → the answer."""

MAX_REQUEST_BYTES = 65_536
BATCH = 32
"""Questions answered per turn of the loop."""


class Questions:
    """Owns one ROUTER per socket path."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        answerers: Mapping[Path, tuple[int, Answerer]],
    ) -> None:
        self._sockets: dict[zmq.Socket[bytes], tuple[Path, Answerer]] = {}
        for path, (mode, answerer) in answerers.items():
            socket = context.socket(zmq.ROUTER)
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.MAXMSGSIZE, MAX_REQUEST_BYTES)
            socket.bind(f"ipc://{path}")
            os.chmod(path, mode)
            self._sockets[socket] = (path, answerer)

    @property
    def sockets(self) -> list[zmq.Socket[bytes]]:
        return list(self._sockets)

    def answer(self) -> None:
        """Answer what has been asked, without waiting."""
        for socket, (_, answerer) in self._sockets.items():
            for _ in range(BATCH):
                try:
                    frames = socket.recv_multipart(zmq.NOBLOCK, copy=False)
                except zmq.Again:
                    break
                envelope = [frame.bytes for frame in frames[:-1]]
                reply = json.dumps(_answer(frames[-1], answerer)).encode()
                with contextlib.suppress(zmq.ZMQError):
                    socket.send_multipart([*envelope, reply], zmq.NOBLOCK)

    def close(self) -> None:
        for socket, (path, _) in self._sockets.items():
            socket.close()
            with contextlib.suppress(OSError):
                path.unlink()


def _answer(frame: zmq.Frame, answerer: Answerer) -> Mapping[str, Any]:
    try:
        uid = int(str(frame.get("Peer-Address")).rsplit(":", 3)[1])
    except (zmq.ZMQError, ValueError, IndexError):
        return {"ok": False, "code": "not_permitted", "error": "the kernel does not say who asks"}
    try:
        request = json.loads(frame.bytes)
    except (ValueError, RecursionError):
        return {"ok": False, "code": "bad_request", "error": "the request is not JSON text"}
    return answerer(uid, request)
