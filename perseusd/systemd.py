"""sd_notify: tell systemd that a process is ready, alive, stopping. Nothing happens elsewhere."""

from __future__ import annotations

import contextlib
import os
import socket
import time

_BEATS = 4  # a watchdog interval has so many, so that one late turn of a loop kills nothing


def notify(state: str) -> None:
    """Send e.g. READY=1; does nothing outside a Type=notify unit."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as peer,
    ):
        peer.setblocking(False)
        peer.sendto(state.encode(), address)


class Pulse:
    """Feeds this process's watchdog, if its unit has one, from the loop whose life it proves."""

    def __init__(self) -> None:
        self._every_ns = _watchdog_ns() // _BEATS
        self._next_ns = 0

    def beat(self) -> None:
        """To be called every turn."""
        now_ns = time.monotonic_ns()
        if self._every_ns and now_ns >= self._next_ns:
            self._next_ns = now_ns + self._every_ns
            notify("WATCHDOG=1")

    def due_ns(self) -> int | None:
        """How long a turn may wait; None: for ever, since nobody watches."""
        return max(0, self._next_ns - time.monotonic_ns()) if self._every_ns else None


def _watchdog_ns() -> int:
    """The unit's interval, 0 without one; the variables of a parent's watchdog are not ours."""
    pid, interval = os.environ.get("WATCHDOG_PID", ""), os.environ.get("WATCHDOG_USEC", "")
    if pid not in ("", str(os.getpid())) or not interval.isdigit():
        return 0
    return int(interval) * 1000
