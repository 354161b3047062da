"""One writer of clocks per node: a lock file that is held as long as clocks may be written.

The lock is the kernel's (flock): it ends with the process that holds it, however that ends. The
file names the holder, for people, and only root or its owner may open it, so that no other user can
hold the lock to keep perseusd away.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from contextlib import suppress
from pathlib import Path

from perseusd.errors import ConfigurationError, NotPermittedError

DEFAULT = Path("/run/lock/perseusd-clock.lock")
VARIABLE = "PERSEUSD_CLOCK_NODE_LOCK"  # as the daemon's own variable for [clock] node_lock

_POLL_S = 0.02

_ATTEMPTS = 5
"""Another process may replace the file between our steps."""


class NodeLock:
    """Held from creation until `release`, or the end of this process.

    wait_s: how long another holder is waited for, such as the clock process of a daemon that has
    just died, which still puts clocks back.

    Raises ConfigurationError naming the holder where another process has it, NotPermittedError
    where the file is another user's.
    """

    def __init__(self, path: Path, wait_s: float = 0.0) -> None:
        self.path = path
        self._descriptor = -1
        self._until_s = time.monotonic() + wait_s
        for _ in range(_ATTEMPTS):
            self._descriptor = self._open()
            if self._descriptor >= 0:
                break
        else:
            raise ConfigurationError(f"{path}: it is replaced again and again; remove it")
        with suppress(OSError):  # on a full disk the lock holds, though it does not say whose it is
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """The file stays, since one that is removed could be held twice."""
        os.close(self._descriptor)

    def _open(self) -> int:
        """The descriptor that holds the lock; -1: try again."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, flags, 0o600)
        except PermissionError:
            return self._not_ours()
        except OSError as error:
            raise ConfigurationError(
                f"--node-lock {self.path}: {error.strerror}; name a file that this user may write"
            ) from error
        try:
            found = os.fstat(descriptor)
            if found.st_uid != os.geteuid() or not stat.S_ISREG(found.st_mode):
                os.close(descriptor)
                return self._not_ours()
            self._lock(descriptor)
            if self._is(descriptor):
                return descriptor
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise ConfigurationError(
                f"another perseusd-clock (process {holder}) writes the clocks of this node's GPUs; "
                f"stop it and its perseusd first, or run with --observe (lock file {self.path})"
            ) from None
        os.close(descriptor)
        return -1

    def _lock(self, descriptor: int) -> None:
        """Raises BlockingIOError where it is still another's in the end."""
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= self._until_s:
                    raise
                time.sleep(_POLL_S)

    def _not_ours(self) -> int:
        """Root takes a file that another user has put there; everybody else leaves it."""
        if os.geteuid() == 0:
            with suppress(FileNotFoundError):
                self.path.unlink()
            return -1
        raise NotPermittedError(
            f"{self.path} is another user's: clocks of this node's GPUs are written, if at all, by "
            "the perseusd-clock of that user; run with --observe, or on simulated GPUs"
        )

    def _is(self, descriptor: int) -> bool:
        """Whether the path still names what is locked."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(descriptor))
        except FileNotFoundError:
            return False
