"""What is refused again and again is counted each time and logged once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from perseusd.daemon import intake as module
from perseusd.daemon.access import Caller
from perseusd.daemon.intake import Intake, Limits, Peer


@pytest.fixture
def intake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Intake]:
    monkeypatch.setattr(module, "LOG_EVERY_S", 0.0)
    with zmq.Context() as context:
        made = Intake(context, tmp_path / "hooks.sock", Limits(lambda caller: True, 100.0, 10))
        yield made
        made.close()


def test_a_reason_is_logged_once_for_each_process(intake: Intake, caplog) -> None:
    """Another process and another reason have a line of their own; each refusal is counted."""
    caplog.set_level(logging.WARNING)
    for _ in range(50):
        intake.refuse(Peer.of(b"a", Caller(1000, 1000, 17)), "gpu_held", "GPU-0 is held by x")
    intake.refuse(Peer.of(b"b", Caller(1000, 1000, 18)), "gpu_held", "GPU-0 is held by x")
    intake.refuse(Peer.of(b"a", Caller(1000, 1000, 17)), "gpu_held", "GPU-0 is held by y")
    said = [record.getMessage() for record in caplog.records]
    assert [line.partition(" of uid")[0] for line in said] == [
        "refused process 17", "refused process 18", "refused process 17",
    ]  # fmt: skip
    assert said[-1].endswith("held by y")
    (entry,) = intake.refused.values()
    assert (entry.count, entry.pid) == (52, 17)


def test_what_was_logged_is_not_remembered_for_ever(intake: Intake) -> None:
    """Whoever thinks of new reasons cannot fill the memory with them."""
    for number in range(3 * module.KEPT_REASONS):
        intake.refuse(Peer.of(b"a", Caller(1000, 1000, 17)), "malformed", f"garbage {number}")
    assert len(intake._told) == module.KEPT_REASONS
