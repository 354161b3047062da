"""The one place that asks the daemon: one question at a time, and none while the last is fresh.

Ten scrapers at once therefore cost the daemon what one does, and a daemon that hangs keeps each of
them no longer than TIMEOUT_S.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from perseusd.ctl.connection import ask
from perseusd.errors import DaemonUnreachableError, NotPermittedError, PerseusError, ProtocolError
from perseusd.exporter.snapshot import Snapshot

TIMEOUT_S: Final = 0.7
"""A loop that works answers within milliseconds; a scrape is to be over within a second."""

FRESH_S: Final = 0.5
"""An answer serves whoever asks within this time."""


class RefusedError(PerseusError):
    """The daemon answered, and not with its status: somebody of this user asks too much."""


RESULTS: Final[dict[type[PerseusError] | None, str]] = {
    None: "answered",
    DaemonUnreachableError: "unreachable",
    NotPermittedError: "not_permitted",
    RefusedError: "refused",
    ProtocolError: "invalid",
}

Ask = Callable[[], Mapping[str, Any]]


class Source:
    """Thread-safe. ask: the daemon's status, or a PerseusError; clock: seconds that pass."""

    def __init__(self, ask: Ask, clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._clock = clock
        self._lock = threading.Lock()
        self._asked: Counter[str] = Counter(dict.fromkeys(RESULTS.values(), 0))
        self._last: Snapshot | None = None
        self._at_s = 0.0

    def snapshot(self) -> Snapshot:
        """What the daemon says, FRESH_S old at most; whoever comes meanwhile waits for the same."""
        with self._lock:
            now_s = self._clock()
            if self._last is None or now_s - self._at_s >= FRESH_S:
                self._last = self._new(now_s)
                self._at_s = self._clock()
            return replace(self._last, age_s=max(0.0, self._clock() - self._at_s))

    def _new(self, began_s: float) -> Snapshot:
        status, error, kind = None, None, None
        try:
            status = self._ask()
            if status.get("ok") is False:
                raise RefusedError(f"the daemon refused to answer: {status.get('error')}")
            if status.get("schema_version") != 1:
                raise ProtocolError(
                    f"the daemon's answer has schema_version {status.get('schema_version')!r} and "
                    "this exporter reads 1; install both from one release"
                )
        except PerseusError as failure:
            status, error, kind = None, str(failure), type(failure)
        self._asked[RESULTS.get(kind, "invalid")] += 1
        took_s = self._clock() - began_s
        return Snapshot(status, error, took_s, 0.0, dict(self._asked))


def asker(status_socket: Path) -> Ask:
    """Asks a running daemon, within TIMEOUT_S."""
    return lambda: ask(status_socket, {"command": "status"}, TIMEOUT_S)
