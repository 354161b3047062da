"""The way of events to the daemon: numbered, introduced, dropped rather than waited for.

A channel is *away* when the daemon did not take a message; until it tries again an event costs a
lock and a comparison. The daemon learns of what was dropped from the gap in the sequence.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from dataclasses import replace
from typing import Any

from perseus_hooks.connection import MAX_PATH_BYTES, Connection, exists
from perseus_hooks.events import Event, Goodbye, Hello, Introduce, Refusal
from perseus_hooks.identity import uses_cuda
from perseus_hooks.log import Once
from perseus_hooks.wire import WireError, decode, encode

SOCKET_NAME = "hooks.sock"
LOCK_S = 0.002  # the longest that one thread waits for another; then its event is dropped
CLOSE_LOCK_S = 0.05
RETRY_NS = (5_000_000, 100_000_000)  # first and longest pause after a message was not taken
ABSENT_NS = 1_000_000_000  # between looks for a socket file that is not there
RENEW_NS = 10_000_000_000  # without one taken message, before the socket is made anew
LOOK_NS = 100_000_000  # between looks for replies …
LOOK_EVENTS = 64  # … or after so many events
MAX_REPLIES = 16  # read in one look
CONNECT_MS = 200  # the longest that `configure` waits for a daemon whose socket file is there


class Channel:
    """Thread-safe; every method returns within milliseconds and none raises for the daemon's sake.

    After a fork the child's copy is silent for good.
    """

    def __init__(self, hello: Hello, runtime_dir: str) -> None:
        path = os.path.join(runtime_dir, SOCKET_NAME)
        self._path = path if len(os.fsencode(path)) <= MAX_PATH_BYTES else None
        self._hello = hello
        self._connection: Connection | None = None
        self._lock = threading.Lock()
        self._open = self._path is not None
        self._introduced = False
        self._sequence = 0
        self._missed: deque[None] = deque()  # events not sent, of any thread: append is atomic
        self._retry_ns = 0
        self._pause_ns = RETRY_NS[0]
        self._renew_ns = 0  # when the socket is made anew; 0: the daemon took the last message
        self._look_ns = 0
        self._unread = 0  # events since the last look for replies
        self._once = Once()

    def emit(self, kind: type[Any], time_ns: int, *fields: Any) -> None:
        """Send `kind(sequence, time_ns, *fields)`, or drop it."""
        if not self._open:
            return
        if not self._lock.acquire(timeout=LOCK_S):
            self._missed.append(None)
            return
        try:
            self._number()
            refusals = () if time_ns < self._retry_ns else self._send(kind, time_ns, fields)
        finally:
            self._lock.release()
        for refusal in refusals:  # without the lock: a log handler may call the hooks
            self._log(refusal)

    def lose(self) -> None:
        """An event is not sent: the next one's number tells."""
        if self._open:
            self._missed.append(None)

    def hears(self, time_ns: int) -> bool:
        """Whether it is worth while to make an event: the daemon may be there."""
        return self._open and time_ns >= self._retry_ns

    def introduce(self, hello: Hello, time_ns: int, wait_ms: int) -> None:
        """Say who speaks from now on; now if the daemon is there, else as soon as it is."""
        self._hello, self._introduced = hello, False  # also where another thread holds the lock
        if not self._open or not self._lock.acquire(timeout=CLOSE_LOCK_S):
            return
        try:
            self._hello = hello
            self._introduced = False
            self._retry_ns = 0
            if self._connected(time_ns, wait_ms):
                self._introduce(time_ns)
        finally:
            self._lock.release()

    def close(self, time_ns: int, wait_ms: int | None = None) -> None:
        """Say goodbye if the daemon is there, and stop for good. wait_ms: None: GOODBYE_MS."""
        if not self._lock.acquire(timeout=CLOSE_LOCK_S):
            self._open = False
            return
        try:
            self._open = False
            connection, self._connection = self._connection, None
            if connection is None:
                return
            if self._introduced:
                self._number()
                connection.send(encode(Goodbye(self._sequence, time_ns)))
            connection.close(wait_ms)
        finally:
            self._lock.release()

    def forget(self) -> None:
        """In a forked child: be silent, and leave the parent's socket and lock alone."""
        self._open = False
        self._lock = threading.Lock()
        if self._connection is not None:
            self._connection.forget()
            self._connection = None

    def _number(self) -> None:
        self._sequence += 1
        while self._missed:
            self._missed.pop()
            self._sequence += 1

    def _send(self, kind: type[Any], time_ns: int, fields: tuple[Any, ...]) -> list[Refusal]:
        if not self._connected(time_ns) or not self._introduce(time_ns):
            return []
        data = encode(kind(self._sequence, time_ns, *fields))
        if self._connection is None or not self._connection.send(data):
            self._away(time_ns)
            return []
        self._pause_ns, self._renew_ns = RETRY_NS[0], 0
        self._unread += 1
        if time_ns < self._look_ns and self._unread < LOOK_EVENTS:
            return []
        return self._look(time_ns)

    def _connected(self, time_ns: int, wait_ms: int = 0) -> bool:
        """Whether there is a connection; it makes one where the socket file is there."""
        if self._connection is not None:
            return True
        if self._path is None or not exists(self._path):
            self._retry_ns = time_ns + ABSENT_NS
            return False
        self._retry_ns = time_ns + ABSENT_NS  # stands if the next line raises
        self._connection = Connection(self._path)
        self._retry_ns = 0
        if wait_ms:
            self._connection.wait_until_connected(wait_ms)
        return True

    def _introduce(self, time_ns: int) -> bool:
        if self._introduced or self._connection is None:
            return self._introduced
        self._introduced = self._connection.send(encode(self._hello))
        if not self._introduced:
            self._away(time_ns)
        return self._introduced

    def _away(self, time_ns: int) -> None:
        """The daemon is absent or stopped. Its successor does not know us: say hello when back."""
        self._introduced = False
        self._retry_ns = time_ns + self._pause_ns
        self._pause_ns = min(2 * self._pause_ns, RETRY_NS[1])
        self._renew_ns = self._renew_ns or time_ns + RENEW_NS
        if time_ns >= self._renew_ns and self._connection is not None:
            self._renew_ns = time_ns + RENEW_NS
            self._connection.renew()

    def _look(self, time_ns: int) -> list[Refusal]:
        """Read replies, and see whether CUDA came up since the last hello."""
        self._look_ns, self._unread = time_ns + LOOK_NS, 0
        replies = self._replies()
        if any(isinstance(reply, Introduce) for reply in replies):
            self._introduced = False
        if not self._hello.uses_cuda and uses_cuda():
            self._hello = replace(self._hello, uses_cuda=True)
            self._introduced = False
        self._introduce(time_ns)
        return [reply for reply in replies if isinstance(reply, Refusal)]

    def _replies(self) -> list[Event]:
        replies: list[Event] = []
        for _ in range(MAX_REPLIES):
            data = self._connection.receive() if self._connection is not None else None
            if data is None:
                break
            with contextlib.suppress(WireError):  # from a later minor version, perhaps
                replies.append(decode(data))
        return replies

    def _log(self, refusal: Refusal) -> None:
        said = (refusal.code, refusal.reason)
        self._once.warn(said, "perseusd does not accept this process (%s): %s", *said)
