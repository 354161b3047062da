"""The server's side of one connection from perseusd."""

from __future__ import annotations

import os
import socket
import struct
from collections import deque

from perseusd.clock.protocol import MAX_PACKET, Reply, Request, decode_request, encode
from perseusd.errors import ProtocolError

_CREDENTIALS = struct.Struct("=iII")  # struct ucred: pid, uid, gid
_MAX_UNSENT = 4096  # replies kept for a daemon that does not read
_REQUESTS_A_TURN = 64  # so that one turn of the loop stays short


class HungUpError(Exception):
    """The connection is over; the message says why."""


def peer_credentials(connection: socket.socket) -> tuple[int, int]:
    """The kernel's word for who is at the other end: (pid, uid)."""
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _gid = _CREDENTIALS.unpack(packed)
    return pid, uid


class Connection:
    """Requests in, replies out, never waiting.

    peer: a descriptor that turns readable when the daemon's process dies, even if a child of it
    holds the socket open; -1 if the kernel gives none.
    heartbeat_ns: when its last heartbeat came. heartbeat_lost: it came too late, and none since.
    closing: the daemon has said that it is done.
    """

    def __init__(self, accepted: socket.socket, number: int, now_ns: int) -> None:
        accepted.setblocking(False)
        self._socket = accepted
        self._unsent: deque[bytes] = deque()
        self.number = number
        self.pid, _uid = peer_credentials(accepted)
        self.peer = _peer_descriptor(accepted)
        self.heartbeat_ns = now_ns
        self.heartbeat_lost = False
        self.closing = False

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def has_unsent(self) -> bool:
        return bool(self._unsent)

    def requests(self) -> tuple[list[Request], HungUpError | None]:
        """What has come in, and why no more will if the connection is over."""
        requests: list[Request] = []
        try:
            while len(requests) < _REQUESTS_A_TURN:
                packet = self._socket.recv(MAX_PACKET)
                if not packet:
                    return requests, HungUpError("the daemon is gone")
                requests.append(decode_request(packet))
        except BlockingIOError:
            pass
        except (OSError, ProtocolError) as error:
            return requests, HungUpError(str(error))
        return requests, None

    def send(self, reply: Reply) -> None:
        """Send or keep for later; HungUpError when the daemon has not read for very long."""
        self._unsent.append(encode(reply))
        self.flush()
        if len(self._unsent) > _MAX_UNSENT:
            raise HungUpError("the daemon does not read its results")

    def flush(self) -> None:
        try:
            while self._unsent:
                self._socket.send(self._unsent[0])
                self._unsent.popleft()
        except BlockingIOError:
            pass
        except OSError:  # it is gone; reading will say so
            self._unsent.clear()

    def dismiss(self, reply: Reply) -> None:
        """Say why it is not served, as far as that goes, and hang up."""
        self.send(reply)
        self.close()

    def close(self) -> None:
        self._socket.close()
        if self.peer >= 0:
            os.close(self.peer)


def _peer_descriptor(connection: socket.socket) -> int:
    pid, _uid = peer_credentials(connection)
    try:
        return os.pidfd_open(pid) if pid > 0 else -1  # 0: from another pid namespace
    except OSError:
        return -1
