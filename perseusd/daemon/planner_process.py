"""The planner's own process: a plan takes as long as it takes, and the loop never waits.

`python -m perseusd.daemon.planner_process FD`: problems come in on the inherited socket, results go
out, and it ends when the daemon closes its side or dies. Importing the planner prepares its kernels
(on a machine's first start they are compiled, and the process begins once more without the
compiler's memory); `Prepared` says that this is done.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from perseusd.core.actions import RequestPlan
from perseusd.core.model import PlanResult
from perseusd.daemon.planning import Planned, Prepared
from perseusd.errors import PlanningError

AGAIN = "again"
"""A last argument: this process has compiled kernels before it began once more."""

NICENESS = 10
"""Training and the loop come first."""


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the daemon ends this process
    again = sys.argv[-1] == AGAIN
    with contextlib.suppress(OSError):  # a sandbox may forbid it
        os.nice(0 if again else NICENESS)
    from perseusd.core.planner import solve  # at low priority: it may compile
    from perseusd.core.planner.compiled import compiled_anew

    if compiled_anew() and not again:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:], AGAIN])  # noqa: S606 - itself
    with Connection(int(sys.argv[1])) as connection:
        connection.send(Prepared())
        while True:
            try:
                request: RequestPlan = connection.recv()
            except (EOFError, OSError):
                return 0
            answer = _answer(solve, request)
            connection.send(Planned(request.job, request.request, answer))


def _answer(solve: Callable[..., PlanResult], request: RequestPlan) -> PlanResult | str:
    try:
        return solve(request.problem, clock=time.monotonic)
    except PlanningError as error:
        return str(error)


if __name__ == "__main__":
    sys.exit(main())
