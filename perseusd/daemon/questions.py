"""Request and answer sockets: JSON text in one frame, JSON text back, for any REQ client."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq

from perseusd.daemon.access import Caller, caller_of
from perseusd.daemon.doors import Door
from perseusd.daemon.quotas import QUESTIONS_PER_S, QuestionQuotas

Answerer = Callable[[Caller, object], Mapping[str, Any]]
"""(who asks, the request) → the answer."""

MAX_REQUEST_BYTES = 65_536
BATCH = 8
"""Questions answered per turn of the loop."""

KEPT_QUESTIONS = 256
"""Of one connection, not yet taken."""

CONNECTIONS_PER_USER = 64
"""To one socket."""


@dataclass
class _Desk:
    """What belongs to one socket."""

    path: Path
    answerer: Answerer
    door: Door
    quotas: QuestionQuotas = field(default_factory=QuestionQuotas)


class Questions:
    """Owns one ROUTER per socket path."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        answerers: Mapping[Path, tuple[int, Answerer]],
    ) -> None:
        self._sockets: dict[zmq.Socket[bytes], _Desk] = {}
        for path, (mode, answerer) in answerers.items():
            socket = context.socket(zmq.ROUTER)
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.MAXMSGSIZE, MAX_REQUEST_BYTES)
            socket.setsockopt(zmq.RCVHWM, KEPT_QUESTIONS)
            door = Door(context, socket, path, CONNECTIONS_PER_USER)
            socket.bind(f"ipc://{path}")
            os.chmod(path, mode)
            self._sockets[socket] = _Desk(path, answerer, door)

    @property
    def sockets(self) -> list[zmq.Socket[bytes]]:
        return list(self._sockets)

    @property
    def doors(self) -> list[Door]:
        return [desk.door for desk in self._sockets.values()]

    def answer(self, ready: Container[object]) -> None:
        """Answer what has been asked on these sockets, without waiting.

        Not on others: what is left there of a batch would have no sign of it any more.
        """
        for socket, desk in self._sockets.items():
            for _ in range(BATCH if socket in ready else 0):
                try:
                    frames = socket.recv_multipart(zmq.NOBLOCK, copy=False)
                except zmq.Again:
                    break
                envelope = [frame.bytes for frame in frames[:-1]]
                answer = reply(caller_of(frames[-1]), frames[-1].bytes, desk.answerer, desk.quotas)
                with contextlib.suppress(zmq.ZMQError):
                    socket.send_multipart([*envelope, answer], zmq.NOBLOCK)

    def close(self) -> None:
        for socket, desk in self._sockets.items():
            desk.door.close()
            socket.close()
            with contextlib.suppress(OSError):
                desk.path.unlink()


def reply(
    caller: Caller | None, request: bytes, answerer: Answerer, quotas: QuestionQuotas
) -> bytes:
    """The answer to one frame, as JSON text. caller: None where the kernel does not say who."""
    return json.dumps(_answer(caller, request, answerer, quotas)).encode()


def _answer(
    caller: Caller | None, request: bytes, answerer: Answerer, quotas: QuestionQuotas
) -> Mapping[str, Any]:
    if caller is None:
        return _refused("not_permitted", "the kernel does not say who asks")
    if not quotas.take(caller.uid, time.monotonic()):
        return _refused(
            "too_many_requests",
            f"uid {caller.uid} asks too much: at most {QUESTIONS_PER_S:g} requests a second are "
            "answered",
        )
    try:
        asked = json.loads(request)
    except (ValueError, RecursionError):
        return _refused("bad_request", "the request is not JSON text")
    return answerer(caller, asked)


def _refused(code: str, error: str) -> dict[str, Any]:
    return {"ok": False, "code": code, "error": error}
