"""What the loop waits for: ZeroMQ's sockets and file descriptors, by epoll.

ZeroMQ's own poller asks every socket each time, which costs more than what most turns of the loop
have to do. A socket's descriptor tells of what has come only until the socket is used in any way,
so those that were used since are asked before the loop sleeps (ZMQ_FD in zmq_getsockopt(3)).
"""

from __future__ import annotations

import contextlib
import select
from collections.abc import Iterable
from typing import Final, cast

import zmq

Socket = zmq.Socket[bytes]

# As plain numbers: zmq's own names for them take as long to convert as the call.
_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)


def has_come(socket: Socket) -> bool:
    """Whether a message waits to be received."""
    return bool(cast(int, socket.get(_EVENTS)) & _POLLIN)


class Waiting:
    """used: sockets that are sent to at any time, and so are asked each time.

    heard: sockets that are used when they are ready, and then alone.
    """

    def __init__(self, used: Iterable[Socket], heard: Iterable[Socket]) -> None:
        self._used = tuple(used)
        self._epoll = select.epoll()
        self._of: dict[int, Socket] = {}
        self._again: set[Socket] = set()
        self._descriptors: set[int] = set()
        for socket in (*self._used, *heard):
            descriptor = socket.fileno()
            self._of[descriptor] = socket
            self._epoll.register(descriptor, select.EPOLLIN)
            self._again.add(socket)
        self._again.difference_update(self._used)

    def watch(self, descriptors: Iterable[int]) -> None:
        """These besides the sockets, and none that were before; to be called after each change.

        One that was closed, and whose number is another one's by now, is a change too.
        """
        now = set(descriptors)
        for gone in self._descriptors - now:
            with contextlib.suppress(OSError):  # closed, which is to be gone already
                self._epoll.unregister(gone)
        for descriptor in now:
            with contextlib.suppress(FileExistsError):
                self._epoll.register(descriptor, select.EPOLLIN)
        self._descriptors = now

    def wait(self, seconds: float) -> set[Socket | int]:
        """What is ready, after so long at most; a socket may turn out to have nothing."""
        ready: set[Socket | int] = {socket for socket in self._used if has_come(socket)}
        if self._again:
            ready |= {socket for socket in self._again if has_come(socket)}
            self._again.clear()
        for descriptor, _ in self._epoll.poll(0 if ready else seconds):
            ready.add(self._of.get(descriptor, descriptor))
        self._again.update(s for s in ready if not isinstance(s, int))
        return ready

    def close(self) -> None:
        self._epoll.close()
