"""One process that runs several stages of a pipeline, one on each of its devices."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Sequence
from typing import Any

from perseus_hooks import connection
from perseus_hooks.channel import CONNECT_MS
from perseus_hooks.client import Client
from perseus_hooks.identity import Arguments, Found, identify, is_enabled, runtime_dir_of
from perseus_hooks.log import warn


def stage_clients(
    stages: int,
    *,
    own: Sequence[int] | None = None,
    gpus: Sequence[str | int | Sequence[str | int]] | None = None,
    job: str | None = None,
    schedule: str | None = None,
    slowdown_budget: float | None = None,
) -> list[Client]:
    """A client for each stage that this process runs: to perseusd each is a rank of its own.

    own: the stages that are this process's, all where left out. gpus: for each of them its GPU, or
    a list; left out, the first of them has the first GPU that CUDA shows, and so on. The others as
    in `configure`, which does not speak for these. One pipeline, without data-parallel copies.
    Waits up to 200 ms for each where a daemon's socket file is there. Raises ValueError for a wrong
    argument.
    """
    mine = range(stages) if own is None else own
    if gpus is not None and len(gpus) != len(mine):
        raise ValueError(f"stage_clients: gpus has {len(gpus)} entries: pass {len(mine)}")
    clients = []
    for place, stage in enumerate(mine):
        arguments = Arguments(
            stage=stage,
            stages=stages,
            replica=0,
            replicas=1,
            schedule=schedule,
            gpus=None if gpus is None else gpus[place],
            job=job,
            rank=stage,
            slowdown_budget=slowdown_budget,
        )
        clients.append(_client(arguments, Found(local_rank=place, world_size=stages)))
    return clients


def _client(arguments: Arguments, found: Found) -> Client:
    found = found._replace(time_source="ready")
    hello = identify(arguments, os.environ, warn, found)
    if not is_enabled(os.environ):
        return Client(hello, "", outlet=_Silence(), device_times=False)
    client = Client(hello, runtime_dir_of(os.environ), wait_ms=CONNECT_MS, device_times=False)
    if not _open:
        atexit.register(_close_all)
    _open.append(client)
    return client


_open: list[Client] = []


def _close_all() -> None:
    """At exit: their goodbyes together get the time of one, where a daemon that is stopped takes
    none.
    """
    end_s = time.monotonic() + connection.GOODBYE_MS / 1000
    for client in _open:
        client.close(wait_ms=max(0, round(1000 * (end_s - time.monotonic()))))


class _Silence:
    """Where the events of a process go that is to say nothing."""

    def emit(self, kind: type[Any], time_ns: int, *fields: Any) -> None: ...

    def lose(self) -> None: ...

    def hears(self, time_ns: int) -> bool:
        return False

    def introduce(self, hello: Any, time_ns: int, wait_ms: int) -> None: ...

    def close(self, time_ns: int, wait_ms: int | None = None) -> None: ...

    def forget(self) -> None: ...
