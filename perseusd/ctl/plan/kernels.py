"""The planner's import, which compiles its kernels where they are not yet on this machine's disk.

Compiled once, they are kept there, and importing takes a fraction of a second. The user is told of
the one time that takes longer, and only when something is really being compiled.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Sized
from typing import Final

PATIENCE_S: Final = 1.0
_PLANNING: Final = "perseusd.ctl.plan.solution"  # imports every part of the planner that is used
_NOTICE: Final = (
    "perseusctl: compiling the planner's kernels for this machine: some seconds, once\n"
)


def prepare() -> None:
    """Import the planner; a line on standard error says why where that takes long."""
    event = importlib.import_module("numba.core.event")
    done = threading.Event()
    with event.install_recorder("numba:compile") as compilations:
        teller = threading.Thread(target=_tell, args=(compilations.buffer, done), daemon=True)
        teller.start()
        try:
            importlib.import_module(_PLANNING)
        finally:
            done.set()
            teller.join()


def _tell(compilations: Sized, done: threading.Event) -> None:
    while not done.wait(PATIENCE_S):
        if len(compilations):
            sys.stderr.write(_NOTICE)
            sys.stderr.flush()
            return
