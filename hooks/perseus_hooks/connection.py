"""One non-blocking ZeroMQ connection to the daemon: messages go at once or not at all.

Sends go straight to libzmq without letting go of the interpreter lock. pyzmq lets go of it for the
microseconds that a send takes, and a trainer with a busy second thread then waits for up to the
switch interval (5 ms) to get it back. The same is true of each of `os`'s calls, so what is asked of
the system while training runs goes straight to the C library.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
from typing import Any, Callable

import zmq

from perseus_hooks.wire import MAX_MESSAGE_BYTES

SEND_QUEUE = 256  # messages; what a stopped daemon can find stale when it goes on
RECONNECT_MS = (10, 1000)  # first and longest interval
GOODBYE_MS = 100  # how long closing may wait for the last message to leave
MAX_PATH_BYTES = 107  # of a Unix socket, without its closing zero
_BACKEND = "zmq.backend.cython._zmq"  # since pyzmq 26; an older one goes the ordinary way
_DESCRIPTORS_NEEDED = 16  # libzmq aborts the process when it runs out of them while starting

_OPTIONS = (
    (zmq.LINGER, 0),
    (zmq.IMMEDIATE, 1),  # no queue until connected: nothing waits for a daemon to come
    (zmq.SNDHWM, SEND_QUEUE),
    (zmq.RCVHWM, SEND_QUEUE),
    (zmq.RECONNECT_IVL, RECONNECT_MS[0]),
    (zmq.RECONNECT_IVL_MAX, RECONNECT_MS[1]),
)

Send = Callable[[bytes], bool]
Receive = Callable[[], "bytes | None"]

_libc: ctypes.PyDLL | None
try:
    _libc = ctypes.PyDLL(None, use_errno=True)
except (OSError, TypeError):  # no C library of its own to be found: a static build
    _libc = None

_inherited: list[Any] = []  # a parent's sockets in a forked child: never touched, never collected


class Connection:
    """A DEALER socket on the daemon's hook socket. Not thread-safe: its owner holds a lock.

    Raises OSError or zmq.ZMQError when it cannot be made.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        _require_descriptors(_DESCRIPTORS_NEEDED)
        self._context = zmq.Context(io_threads=1)  # our own: a user may terminate the shared one
        self._connect()

    def _connect(self) -> None:
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        for option, value in _OPTIONS:
            self._socket.setsockopt(option, value)
        self._socket.connect(f"ipc://{self._path}")
        self.send, self.receive = _direct(self._socket) or _through_pyzmq(self._socket)

    def renew(self) -> None:
        """A new socket for one that may have given up: libzmq does over what is no ZeroMQ."""
        _require_descriptors(_DESCRIPTORS_NEEDED)
        self._socket.close(linger=0)
        self._connect()

    def wait_until_connected(self, timeout_ms: int) -> None:
        """For `configure` alone, so that the first computation is not lost."""
        self._socket.poll(timeout_ms, zmq.POLLOUT)

    def close(self, wait_ms: int | None = None) -> None:
        """Close within wait_ms (None: GOODBYE_MS), whatever the daemon does."""
        with contextlib.suppress(zmq.ZMQError):
            self._socket.close(linger=GOODBYE_MS if wait_ms is None else wait_ms)
            self._context.term()

    def forget(self) -> None:
        """In a forked child: leave the parent's socket and its threads alone for good."""
        _inherited.append((self._context, self._socket))


def exists(path: str) -> bool:
    """Whether there is a file."""
    if _libc is None:
        return os.path.exists(path)
    there: bool = _libc.access(os.fsencode(path), os.F_OK) == 0
    return there


def _require_descriptors(count: int) -> None:
    """Raise OSError where fewer file descriptors than this are left."""
    taken: list[int] = []
    try:
        for _ in range(count):
            taken.append(_descriptor())
    finally:
        for descriptor in taken:
            os.close(descriptor) if _libc is None else _libc.close(descriptor)


def _descriptor() -> int:
    flags = os.O_RDONLY | os.O_CLOEXEC
    if _libc is None:
        return os.open(os.devnull, flags)
    descriptor: int = _libc.open(os.fsencode(os.devnull), flags)
    if descriptor < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.devnull)
    return descriptor


def _direct(socket: zmq.Socket[bytes]) -> tuple[Send, Receive] | None:
    """libzmq's own calls on this socket, or None where they cannot be found (PyPy, static builds).

    PyDLL keeps the interpreter lock. The calls never wait (ZMQ_DONTWAIT), so that is safe.
    """
    try:
        module = importlib.import_module(_BACKEND)
        library = ctypes.PyDLL(module.__file__)  # its symbols are those of the libzmq it links to
        zmq_send, zmq_recv = library.zmq_send, library.zmq_recv
    except (ImportError, AttributeError, OSError, TypeError):
        return None
    zmq_send.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int)
    zmq_recv.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    handle, flags = ctypes.c_void_p(socket.underlying), int(zmq.DONTWAIT)
    buffer = ctypes.create_string_buffer(MAX_MESSAGE_BYTES)

    def send(data: bytes) -> bool:
        sent: int = zmq_send(handle, data, len(data), flags)
        return sent >= 0

    def receive() -> bytes | None:
        size = zmq_recv(handle, buffer, MAX_MESSAGE_BYTES, flags)
        return buffer.raw[:size] if size >= 0 else None

    return send, receive


def _through_pyzmq(socket: zmq.Socket[bytes]) -> tuple[Send, Receive]:
    def send(data: bytes) -> bool:
        try:
            socket.send(data, zmq.DONTWAIT)
        except zmq.ZMQError:
            return False
        return True

    def receive() -> bytes | None:
        try:
            return socket.recv(zmq.DONTWAIT)
        except zmq.ZMQError:
            return None

    return send, receive
