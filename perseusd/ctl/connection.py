"""One question to the daemon: one frame of JSON there, one frame of JSON back, within a time limit.

Whatever keeps the answer away is told apart, because each has its own fix: no socket, a socket that
nobody listens on, a socket that this user may not open, a daemon that does not answer in time.
"""

from __future__ import annotations

import errno
import json
import math
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import zmq

from perseusd.config import RUNTIME_DIR_VARIABLE
from perseusd.errors import DaemonUnreachableError, NotPermittedError, ProtocolError

TIMEOUT_S = 5.0

_FOREIGN = "is this socket perseusd's, and of this version? Compare `perseusd --version`"

_IS_IT_RUNNING = (
    "is perseusd running? See `systemctl status perseusd`; for a daemon that was started with "
    f"--runtime-dir, give perseusctl the same --runtime-dir or set {RUNTIME_DIR_VARIABLE}"
)


def ask(path: Path, request: Mapping[str, object], timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """The daemon's answer to one request on one of its sockets.

    Raises DaemonUnreachableError, NotPermittedError, or ProtocolError for an answer that is none.
    """
    check_listening(path)
    with zmq.Context() as context, context.socket(zmq.REQ) as client:
        client.linger = 0
        client.sndtimeo = round(timeout_s * 1000)
        client.connect(f"ipc://{path}")
        client.send(json.dumps(request).encode())
        if not client.poll(round(timeout_s * 1000), zmq.POLLIN):
            raise DaemonUnreachableError(
                f"{path}: perseusd took the connection and did not answer within {timeout_s:g} s; "
                "it hangs or is stopped, or this machine is busy; try again. If it stays so, see "
                "`systemctl status perseusd` and its log; `systemctl restart perseusd` starts it "
                "afresh, and perseusd-clock puts every clock back by itself"
            )
        return _parsed(path, client.recv_multipart())


def check_listening(path: Path) -> None:
    """Raise what is wrong with a socket on which no process listens for this user."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            probe.connect(os.fspath(path))
    except BlockingIOError:
        return  # somebody listens and the queue is full: the time limit will tell
    except PermissionError:
        raise NotPermittedError(
            f"{path}: this user may not open it; run as root or as a member of the group that owns "
            f"it (see `ls -ld {path.parent} {path}`)"
        ) from None
    except OSError as error:
        raise DaemonUnreachableError(f"{path}: {_reason(error)}; {_IS_IT_RUNNING}") from None


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return "no such socket"
    if error.errno == errno.ECONNREFUSED:
        return "nobody listens on this socket (a daemon left it behind)"
    return error.strerror or str(error)


def _parsed(path: Path, frames: list[bytes]) -> dict[str, Any]:
    if len(frames) != 1:
        raise ProtocolError(f"{path}: an answer of {len(frames)} frames instead of 1; {_FOREIGN}")
    try:
        answer = json.loads(frames[0], parse_constant=lambda _: None, parse_float=_finite)
    except (ValueError, RecursionError):
        raise ProtocolError(
            f"{path}: the answer {frames[0][:60]!r} is not JSON; {_FOREIGN}"
        ) from None
    if not isinstance(answer, dict):
        raise ProtocolError(f"{path}: the answer {frames[0][:60]!r} is no object; {_FOREIGN}")
    return answer


def _finite(text: str) -> float | None:
    """A number that JSON can say; infinity and NaN are not known, so null, to everyone after us."""
    value = float(text)
    return value if math.isfinite(value) else None
