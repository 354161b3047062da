"""Run a command and end it when standard input closes: whoever holds the other end is gone then.

`python -m perseusd.emulation.leash COMMAND…` exits with the command's status.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence

GRACE_S = 5.0
_PR_SET_PDEATHSIG = 1


def main(command: Sequence[str] | None = None) -> int:
    libc = ctypes.CDLL(None, use_errno=True)

    def die_with_me() -> None:  # even when this process is killed; it has one thread
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    child = subprocess.Popen(
        sys.argv[1:] if command is None else command,
        stdin=subprocess.DEVNULL,
        preexec_fn=die_with_me,
    )
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    signal.signal(signal.SIGINT, lambda *_: child.terminate())
    ended = os.pidfd_open(child.pid)
    while True:
        readable, _, _ = select.select([sys.stdin.fileno(), ended], [], [])
        if ended in readable:
            return child.wait()
        if not os.read(sys.stdin.fileno(), 4096):
            return _end(child)


def _end(child: subprocess.Popen[bytes]) -> int:
    child.terminate()
    try:
        return child.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


if __name__ == "__main__":
    sys.exit(main())
