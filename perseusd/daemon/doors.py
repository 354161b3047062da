"""How many connections each user may hold to a socket, and the end of those that are too many.

ZeroMQ takes every connection that comes, and where file descriptors run out it ends the process
(an assertion in its ipc listener). So that no local user can end the daemon in this way, each
accepted connection is counted for its user, by the kernel's word, and one too many is shut down.
ZeroMQ's monitor tells of connections that come and go.
"""

from __future__ import annotations

import contextlib
import fcntl
import resource
import socket as sockets
import struct
import termios
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import zmq

from perseusd.daemon.access import Caller

EVENTS_A_TURN = 1000
_EVENT = struct.Struct("=HI")  # what happened, and the descriptor that it happened to
_COUNT = struct.Struct("=i")
_CREDENTIALS = struct.Struct("=iII")  # struct ucred: pid, uid, gid


def raise_descriptor_limit() -> int:
    """As many file descriptors as this process may have; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Door:
    """Watches one listening ZeroMQ socket on an ipc path. Make it before the socket is bound."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        listening: zmq.Socket[bytes],
        path: Path,
        per_user: int,
        tell: Callable[[Caller, str], None] = lambda _caller, _why: None,
    ) -> None:
        """tell: is called with each whose connection is one too many, and why."""
        self._path = str(path)
        self._tell = tell
        self.per_user = per_user
        self._listening = listening
        self._user_of: dict[int, int] = {}
        self._held: Counter[int] = Counter()
        address = f"inproc://door-{id(self):x}"
        listening.monitor(address, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        self.monitor = context.socket(zmq.PAIR)
        self.monitor.setsockopt(zmq.LINGER, 0)
        self.monitor.setsockopt(zmq.RCVHWM, 0)  # ZeroMQ's own thread waits where this is full
        self.monitor.connect(address)

    def held(self, uid: int) -> int:
        """Connections of this user now."""
        return self._held[uid]

    def mind(self) -> None:
        """Count what has come and gone, and shut down what is too many; never waits."""
        for event, descriptor in self._events():
            if event == zmq.EVENT_ACCEPTED:
                self._accepted(descriptor)
            else:
                self._gone(descriptor)

    def pressing(self, least: int) -> list[int]:
        """Connections in whose buffer so many bytes wait now, by descriptor."""
        return [fd for fd in self._user_of if _waiting(fd) >= least]

    def cut(self, descriptor: int, why: str) -> None:
        """Shut a connection down, and tell of it."""
        with contextlib.suppress(OSError), self._borrowed(descriptor) as connection:
            caller = _peer_of(connection)  # before: ZeroMQ closes it at once
            connection.shutdown(sockets.SHUT_RDWR)
            self._tell(caller, why)

    def cut_all(self, why: str) -> None:
        for descriptor in list(self._user_of):
            self.cut(descriptor, why)

    def close(self) -> None:
        with contextlib.suppress(zmq.ZMQError):
            self._listening.disable_monitor()
        self.monitor.close()

    def _events(self) -> Iterator[tuple[int, int]]:
        for _ in range(EVENTS_A_TURN):
            try:
                frames = self.monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.ZMQError:
                return
            yield _EVENT.unpack(frames[0])

    def _accepted(self, descriptor: int) -> None:
        self._gone(descriptor)  # its number may be an earlier one's, whose end was not told
        with contextlib.suppress(OSError), self._borrowed(descriptor) as connection:
            caller = _peer_of(connection)
            self._user_of[descriptor] = caller.uid
            self._held[caller.uid] += 1
            if self._held[caller.uid] > self.per_user:
                connection.shutdown(sockets.SHUT_RDWR)
                why = f"this user holds {self.per_user} connections to {self._path} already"
                self._tell(caller, why)

    @contextlib.contextmanager
    def _borrowed(self, descriptor: int) -> Iterator[sockets.socket]:
        """ZeroMQ's connection; OSError where it has gone, or its number is another's by now."""
        connection = sockets.socket(fileno=descriptor)
        try:
            if connection.family != sockets.AF_UNIX or connection.getsockname() != self._path:
                raise OSError(f"{descriptor} is no connection to {self._path}")
            yield connection
        finally:
            connection.detach()

    def _gone(self, descriptor: int) -> None:
        uid = self._user_of.pop(descriptor, None)
        if uid is not None:
            self._held[uid] -= 1
            if not self._held[uid]:
                del self._held[uid]


def _peer_of(connection: sockets.socket) -> Caller:
    packed = connection.getsockopt(sockets.SOL_SOCKET, sockets.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(packed)
    return Caller(uid, gid, pid)


def _waiting(descriptor: int) -> int:
    """Bytes that have come and were not read."""
    try:
        answer = fcntl.ioctl(descriptor, termios.FIONREAD, bytes(_COUNT.size))
    except OSError:
        return 0
    return int(_COUNT.unpack(answer)[0])
