"""What /proc tells of the processes that the driver lists."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

HOST_NAMESPACE = 0xEFFFFFFC
"""The number that Linux gives the first process namespace (PROC_PID_INIT_INO)."""

MPS_SERVER = "nvidia-cuda-mps"
"""The name of the server of NVIDIA's Multi-Process Service, as far as the kernel keeps it."""

FURTHEST = 64
"""Generations that are looked back on."""


class Process(NamedTuple):
    """One process. uids: real and effective; empty where this user may not see it.

    lineage: its parent, that one's parent and so on.
    """

    pid: int
    uids: frozenset[int] = frozenset()
    name: str = ""
    lineage: tuple[int, ...] = ()


def in_host_namespace() -> bool:
    """Whether process ids mean here what they mean to the driver: those of the host."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino == HOST_NAMESPACE
    except OSError:
        return False


def look_up(pid: int) -> Process | None:
    """None where there is no such process (any more)."""
    told = _status(pid)
    if told is None:
        return Process(pid) if _exists(pid) else None
    try:
        uids = frozenset(map(int, told["Uid"].split()[:2]))
        return Process(pid, uids, told["Name"].strip(), _lineage(int(told["PPid"])))
    except (KeyError, ValueError):
        return Process(pid)


def _lineage(pid: int) -> tuple[int, ...]:
    found: list[int] = []
    while pid > 1 and len(found) < FURTHEST:
        found.append(pid)
        told = _status(pid)
        if told is None or not told.get("PPid", "").strip().isdecimal():
            break
        pid = int(told["PPid"])
    return tuple(found)


def _status(pid: int) -> dict[str, str] | None:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        return None
    return {name: rest for name, _, rest in (line.partition(":") for line in lines)}


def _exists(pid: int) -> bool:
    """Also where /proc hides it from this user (hidepid)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
