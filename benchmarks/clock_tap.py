"""Between perseusd and perseusd-clock: passes every packet on, and notes when a request came.

It runs before whatever shares its core, where that is permitted: what it waits for a processor
would be taken for the daemon's time.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import sys
import time
from pathlib import Path

from perseusd.clock.protocol import Lock, Reset, decode_request

PACKET = 4096


def main(listen: Path, clock: Path, notes: Path) -> None:
    """One daemon's connection, until it ends; a line a request: stamp, GPU, clock (0: full)."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(listen))
    listener.listen(1)
    theirs, _ = listener.accept()
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.connect(str(clock))
    with notes.open("w") as out, selectors.DefaultSelector() as selector:
        selector.register(theirs, selectors.EVENT_READ, ours)
        selector.register(ours, selectors.EVENT_READ, theirs)
        while True:
            for key, _ in selector.select():
                packet = key.fileobj.recv(PACKET)  # type: ignore[union-attr]
                stamp_ns = time.monotonic_ns()
                if not packet:
                    return
                key.data.send(packet)
                if key.fileobj is theirs:
                    request = decode_request(packet)
                    if isinstance(request, Lock | Reset):
                        clock_mhz = request.clock_mhz if isinstance(request, Lock) else 0
                        out.write(f"{stamp_ns} {request.gpu_index} {clock_mhz}\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
