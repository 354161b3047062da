"""Recordings of emulated jobs in virtual time, made through the core as the daemon makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from perseusd.core.actions import Action
from perseusd.core.settings import Settings
from perseusd.emulation.fasttime import Conditions, FastTime, Slow, counted
from perseusd.emulation.workloads import load_workload
from perseusd.traces.recording import Header, Input, pack, pack_header
from perseusd.traces.replay import RecordedController


@dataclass
class Made:
    """What a run in virtual time told its controller, and what the controller asked for."""

    header: Header
    inputs: list[Input] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)
    run: FastTime | None = None

    def bytes(self) -> bytes:
        return pack_header(self.header) + b"".join(map(pack, self.inputs))

    def write(self, path: Path) -> Path:
        path.write_bytes(self.bytes())
        return path


def record(
    conditions: Conditions, iterations: int, settings: Settings | None = None, since: int = 0
) -> Made:
    """since: the iteration at whose begin recording begins, with who is there then."""
    workload = load_workload("bloom-3b", "a100-pcie")
    run = FastTime(workload, counted, conditions, settings, microbatches=8)
    shell = run.shell
    controller = RecordedController(shell.controller.settings, shell.controller.gpus)
    shell.controller = controller
    made = Made(Header(controller.settings, controller.gpus, emulated=True), run=run)

    def listen() -> None:
        if since:
            made.inputs += controller.present()
        controller.sink = made.inputs.append

    act = shell.act

    def noted(now: int, actions: Sequence[Action]) -> None:
        made.actions += actions
        act(now, actions)

    shell.act = noted  # type: ignore[method-assign]
    if since:
        run.before(since, listen)
    else:
        listen()
    run.run(iterations)
    return made


@pytest.fixture(scope="session")
def make_recording() -> Callable[..., Made]:
    return record


@pytest.fixture(scope="session")
def whole_run() -> Made:
    """From the first hello on: baseline, learning and hold, with a straggler at the end."""
    slow = Slow(rank=1, factor=1.5, start=34)
    return record(Conditions(noise=0.01, seed=1, slow=(slow,)), 42)
