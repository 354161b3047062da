"""The planner's own process: a plan takes as long as it takes, and the loop never waits.

`python -m perseusd.daemon.planner_process FD`: problems come in on the inherited socket, results go
out, and it ends when the daemon closes its side or dies.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from multiprocessing.connection import Connection

from perseusd.core.actions import RequestPlan
from perseusd.core.model import PlanResult
from perseusd.core.planner import solve
from perseusd.daemon.planning import Planned
from perseusd.errors import PlanningError

NICENESS = 10
"""Training and the loop come first."""


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the daemon ends this process
    os.nice(NICENESS)
    with Connection(int(sys.argv[1])) as connection:
        while True:
            try:
                request: RequestPlan = connection.recv()
            except (EOFError, OSError):
                return 0
            connection.send(Planned(request.job, request.request, _answer(request)))


def _answer(request: RequestPlan) -> PlanResult | str:
    try:
        return solve(request.problem, clock=time.monotonic)
    except PlanningError as error:
        return str(error)


if __name__ == "__main__":
    sys.exit(main())
