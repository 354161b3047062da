"""How the loop lets events gather: never past what is due, never while there is a backlog."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from perseusd.daemon import service
from perseusd.daemon.service import IDLE_S, Service

MS = 1_000_000


@pytest.mark.parametrize(
    ("events_wait_ms", "due_ms", "backlog", "slept_s", "then_s"),
    [
        (25, None, False, 0.025, IDLE_S),
        (25, 100, False, 0.025, IDLE_S),
        (25, 10, False, 0.010, 0.0),
        (25, 30, False, 0.025, 0.005),
        (25, -5, False, None, 0.0),
        (25, None, True, None, IDLE_S),
        (0, None, False, None, IDLE_S),
    ],
)
def test_what_is_due_is_not_slept_past(
    monkeypatch: pytest.MonkeyPatch,
    events_wait_ms: int,
    due_ms: int | None,
    backlog: bool,
    slept_s: float | None,
    then_s: float,
) -> None:
    slept: list[float] = []
    waited: list[float] = []
    now_ns = time.monotonic_ns()
    stopped = SimpleNamespace(monotonic_ns=lambda: now_ns, sleep=slept.append)
    monkeypatch.setattr(service, "time", stopped)
    loop = SimpleNamespace(
        controller=SimpleNamespace(
            next_due_ns=lambda: None if due_ms is None else now_ns + due_ms * MS,
            events_wait_ns=lambda at_ns: events_wait_ms * MS * (at_ns == now_ns),
        ),
        intake=SimpleNamespace(backlog=backlog),
        waiting=SimpleNamespace(wait=waited.append),
    )
    Service._wait(loop)  # type: ignore[arg-type] # of a service, all that this looks at
    assert slept == ([] if slept_s is None else [pytest.approx(slept_s)])
    assert waited == [pytest.approx(then_s, abs=1e-9)]
