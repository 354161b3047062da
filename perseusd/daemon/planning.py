"""The daemon's side of the planner process: requests go out, plans come back, nothing waits."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler

from perseusd.core.actions import RequestPlan
from perseusd.core.model import PlanResult

log = logging.getLogger(__name__)

CHILD = "perseusd.daemon.planner_process"

TIME_LIMIT_S = 60.0
"""A plan that takes longer is given up and its process replaced."""

PREPARE_LIMIT_S = 600.0
"""The first process on a machine compiles the planner's kernels; later ones find them on disk."""

RESTART_S = 1.0
"""Before a planner process that ended or hung is replaced: one that cannot start stays cheap."""


@dataclass(frozen=True)
class Planned:
    """The answer to a request; a string says why there is no plan."""

    job: str
    request: int
    answer: PlanResult | str


@dataclass(frozen=True)
class Prepared:
    """The planner process's first message: its kernels are there, plans wait for nothing more."""


@dataclass
class Planner:
    """The daemon's side. Waiting requests are replaced by newer ones of the same job."""

    _waiting: dict[str, RequestPlan] = field(default_factory=dict)
    _busy: RequestPlan | None = None
    _since_s: float = 0.0
    _prepared: bool = False
    _process: subprocess.Popen[bytes] | None = None
    _connection: Connection | None = None
    _sender: threading.Thread | None = None
    _restart_s: float | None = None
    given_up: int = 0
    """How often its process ended or hung, and was replaced."""

    def start(self) -> None:
        self._restart_s, self._prepared = None, False
        ours, theirs = socket.socketpair()
        with theirs:
            os.set_inheritable(theirs.fileno(), True)
            environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            self._process = subprocess.Popen(
                [sys.executable, "-m", CHILD, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
        self._connection = Connection(ours.detach())

    @property
    def prepared(self) -> bool:
        return self._prepared

    def fileno(self) -> int | None:
        return None if self._connection is None else self._connection.fileno()

    def request(self, request: RequestPlan) -> None:
        self._waiting[request.job] = request
        self._next()

    def results(self) -> list[Planned]:
        """Answers that have come, without waiting."""
        found: list[Planned] = []
        try:
            while self._connection is not None and self._connection.poll():
                message = self._connection.recv()
                if isinstance(message, Prepared):
                    self._prepared, self._since_s = True, time.monotonic()
                else:
                    found.append(message)
                    self._busy = None
        except (EOFError, OSError):
            found += self._give_up("the planner process ended unexpectedly")
        now = time.monotonic()
        limit_s = TIME_LIMIT_S if self._prepared else PREPARE_LIMIT_S
        if self._busy is not None and now - self._since_s > limit_s:
            found += self._give_up(f"planning took longer than {limit_s:g} s")
        if self._restart_s is not None and now >= self._restart_s:
            self.start()
        self._next()
        return found

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._sender is not None:
            self._sender.join()  # nobody reads any more: its write has failed
            self._sender = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _next(self) -> None:
        if self._busy is not None or not self._waiting or self._connection is None:
            return
        self._busy = self._waiting.pop(next(iter(self._waiting)))
        self._since_s = time.monotonic()
        # A large problem does not fit the socket: writing it waits until the planner reads.
        arguments = (self._connection, ForkingPickler.dumps(self._busy))
        self._sender = threading.Thread(
            target=_send, args=arguments, name="to-planner", daemon=True
        )
        self._sender.start()

    def _give_up(self, why: str) -> list[Planned]:
        self.given_up += 1
        log.error("%s; starting it again", why)
        busy, self._busy = self._busy, None
        self.stop()
        self._restart_s = time.monotonic() + RESTART_S
        return [] if busy is None else [Planned(busy.job, busy.request, why)]


def _send(connection: Connection, data: memoryview) -> None:
    with contextlib.suppress(OSError):  # a failure shows as EOF in results()
        connection.send_bytes(data)
