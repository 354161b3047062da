"""A GPU that may be lowered and cannot be opened is looked for, though no daemon is there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from nvml_faults import HANG, gpu_controls, set_faults

from perseusd.clock.client import ClockClient
from perseusd.clock.holding import LOOK_S
from perseusd.clock.protocol import ResultCode
from perseusd.errors import DaemonUnreachableError

Waiter = Callable[..., bool]

OPENING = "nvmlDeviceGetName"
DRIVER = "nvmlInitWithFlags"
FAILED = 999
PATIENCE_S = 6 * LOOK_S  # the first look comes after at most two pauses, the second after four


class Unit:
    """A perseusd-clock that listens, as under systemd."""

    def __init__(self, room: Any) -> None:
        self.room = room
        self.path: Path = room.state / "clock.sock"
        self._log = room.state.parent / "log"
        command = [sys.executable, "-m", "perseusd.clock", "--socket", str(self.path)]
        with self._log.open("w") as log:
            self.process = subprocess.Popen([*command, *room.arguments], stderr=log)

    def connect(self) -> ClockClient | None:
        with suppress(DaemonUnreachableError):
            return ClockClient.connect(self.path)
        return None

    @property
    def lines(self) -> list[str]:
        return self._log.read_text().splitlines()

    @property
    def holds_the_driver(self) -> bool:
        """Whether a GPU could not be reset because of it."""
        folder = Path(f"/proc/{self.process.pid}/fd")
        held = f"{self.room.node.path}.nvml"
        return held in {os.readlink(entry) for entry in folder.iterdir() if entry.is_symlink()}


@pytest.fixture
def start(left_locked: Any) -> Iterator[Callable[[], Unit]]:
    units: list[Unit] = []

    def begin() -> Unit:
        units.append(Unit(left_locked))
        return units[-1]

    yield begin
    for unit in units:
        unit.process.kill()
        unit.process.wait()


@pytest.mark.parametrize("code", [FAILED, HANG])
def test_it_is_put_back_once_it_opens(
    left_locked: Any, start: Callable[[], Unit], wait_for: Waiter, code: int
) -> None:
    """Whether its opening fails or hangs: the others are put back at once, this one as soon as it
    opens, and it is not in the file any more. Said is what changes, once."""
    room = left_locked
    set_faults(room.node.path, (OPENING, 1, code))
    unit = start()
    assert wait_for(lambda: room.locks == [None, 1005, None])
    time.sleep(3 * LOOK_S)  # so that it was looked for in vain
    assert room.locks == [None, 1005, None]
    assert room.intent == [room.node.gpus[1].info.uuid]
    set_faults(room.node.path)
    assert wait_for(lambda: room.unlocked and room.intent == [], PATIENCE_S)
    assert wait_for(lambda: not unit.holds_the_driver)
    assert unit.process.poll() is None
    assert len([line for line in unit.lines if "is not served" in line]) == 1
    assert any(f"{room.node.gpus[1].info.uuid}" in line and "here" in line for line in unit.lines)


def test_beside_a_gpu_whose_opening_hangs(
    left_locked: Any, start: Callable[[], Unit], wait_for: Waiter
) -> None:
    """That call keeps the driver held, and no other GPU from being looked for."""
    room = left_locked
    set_faults(room.node.path, (OPENING, 0, HANG), (OPENING, 1, FAILED))
    start()
    assert wait_for(lambda: room.locks[2] is None)
    time.sleep(2 * LOOK_S)  # so that it was looked for in vain
    set_faults(room.node.path, (OPENING, 0, HANG))
    assert wait_for(lambda: room.locks[1:] == [None, None], 3 * LOOK_S)


def test_looks_are_few_and_let_go_of_the_driver(
    left_locked: Any, start: Callable[[], Unit], wait_for: Waiter
) -> None:
    """Between looks the driver is not held, so that the GPU can be reset; and once it is put back,
    none is looked for any more."""
    room = left_locked
    set_faults(room.node.path, (OPENING, 1, FAILED))
    unit = start()
    assert wait_for(lambda: unit.path.exists() and not unit.holds_the_driver, PATIENCE_S)
    calls, until_s = gpu_controls(room.node.path, 1).calls, time.monotonic() + 4 * LOOK_S
    held: list[bool] = []
    while time.monotonic() < until_s:
        held.append(unit.holds_the_driver)
        time.sleep(0.02)  # between two samples of a share of the time
    assert 0 < gpu_controls(room.node.path, 1).calls - calls < 20
    assert sum(held) < len(held) / 5
    set_faults(room.node.path)
    assert wait_for(lambda: room.unlocked, 2 * PATIENCE_S)
    assert wait_for(lambda: not unit.holds_the_driver)
    calls = gpu_controls(room.node.path, 0).calls
    time.sleep(2 * LOOK_S)  # in which a look would come
    assert gpu_controls(room.node.path, 0).calls == calls


def test_after_a_daemon_has_left(
    left_locked: Any, start: Callable[[], Unit], wait_for: Waiter
) -> None:
    """A daemon that comes meanwhile is served with the other GPUs; once it has left, and the driver
    was let go of, the GPU is looked for as before."""
    room = left_locked
    set_faults(room.node.path, (OPENING, 1, FAILED))
    unit = start()
    assert wait_for(lambda: unit.path.exists() and not unit.holds_the_driver, PATIENCE_S)
    client = unit.connect()
    assert client is not None
    codes: list[ResultCode] = []

    def heard() -> ClockClient:
        client.heartbeat()
        codes.extend(result.code for result in client.results())
        return client

    assert wait_for(lambda: 2 in heard().gpus)
    client.lock(0, 1005)
    assert wait_for(lambda: heard() and codes)
    assert codes == [ResultCode.OK]
    assert room.locks == [1005, 1005, None]
    client.close()
    assert wait_for(lambda: room.locks == [None, 1005, None])
    assert wait_for(lambda: not unit.holds_the_driver)
    set_faults(room.node.path)
    assert wait_for(lambda: room.unlocked, PATIENCE_S)
    assert wait_for(lambda: room.intent == [])


def test_a_driver_that_is_gone_for_a_while(
    left_locked: Any, start: Callable[[], Unit], wait_for: Waiter
) -> None:
    """It is opened again and again, which is said once, until the GPU is there and put back."""
    room = left_locked
    set_faults(room.node.path, (OPENING, 1, FAILED))
    unit = start()
    assert wait_for(lambda: unit.path.exists() and not unit.holds_the_driver, PATIENCE_S)
    set_faults(room.node.path, (DRIVER, -1, FAILED))
    assert wait_for(lambda: any("nvmlInit" in line for line in unit.lines), PATIENCE_S)
    set_faults(room.node.path)
    assert wait_for(lambda: room.unlocked, 2 * PATIENCE_S)
    assert len([line for line in unit.lines if "nvmlInit" in line]) == 1
