"""A client's hold on its GPUs lasts as long as its process, by the kernel's word.

A pidfd becomes readable the moment its process dies, however it dies, and cannot be fooled by the
pid being given to another process.
"""

from __future__ import annotations

import os
import select
from dataclasses import dataclass, field


class ProcessGoneError(Exception):
    """No such process (any more), or none that this pid namespace can see."""


@dataclass
class Leases:
    """One pidfd per client process; several clients of one process share its end."""

    _fds: dict[int, int] = field(default_factory=dict)
    _clients: dict[int, set[str]] = field(default_factory=dict)
    _poll: select.epoll = field(default_factory=select.epoll)

    def fileno(self) -> int:
        """Readable when a leased process has died."""
        return self._poll.fileno()

    @property
    def processes(self) -> int:
        """That are watched."""
        return len(self._fds)

    def add(self, client: str, pid: int) -> None:
        """Raises ProcessGoneError."""
        if pid not in self._fds:
            try:
                fd = os.pidfd_open(pid)
            except (OSError, ValueError, OverflowError) as error:
                raise ProcessGoneError(f"process {pid}: {error}") from error
            self._fds[pid] = fd
            self._poll.register(fd, select.EPOLLIN)
        self._clients.setdefault(pid, set()).add(client)

    def remove(self, client: str, pid: int) -> None:
        """The client let go by itself; harmless where it has no lease."""
        clients = self._clients.get(pid, set())
        clients.discard(client)
        if pid in self._fds and not clients:
            self._drop(pid)

    def died(self) -> list[str]:
        """Clients whose process is dead; each is told once."""
        by_fd = {fd: pid for pid, fd in self._fds.items()}
        dead = [by_fd[fd] for fd, _ in self._poll.poll(0)]
        return [client for pid in dead for client in self._drop(pid)]

    def close(self) -> None:
        for pid in list(self._fds):
            self._drop(pid)
        self._poll.close()

    def _drop(self, pid: int) -> set[str]:
        fd = self._fds.pop(pid)
        self._poll.unregister(fd)
        os.close(fd)
        return self._clients.pop(pid, set())
