"""perseusd-clock on the fake NVML library: GPUs that are slow to open, or hang at it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nvml_build
import pytest
from nvml_faults import HANG, gpu_controls, set_faults

from perseusd.clock.protocol import ResultCode
from perseusd.gpus import OPEN_S

Rooms = Callable[..., Any]
Waiter = Callable[..., bool]

OPENING = "nvmlDeviceGetName"
RESET = "nvmlDeviceResetGpuLockedClocks"


@pytest.fixture
def room(make_room: Rooms, nvml_library: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Three GPUs that a clock process which was killed left locked."""
    made = make_room(3)
    for name, value in nvml_build.environment(nvml_library, made.node.path).items():
        monkeypatch.setenv(name, value)
    made.arguments = ["--state-dir", str(made.state)]
    clock = made.start()
    for index in range(3):
        assert clock.result(clock.client.lock(index, 1005)).code is ResultCode.OK
    clock.process.kill()
    clock.process.wait()
    assert made.locks == [1005] * 3
    return made


def hello_s(clock: Any, wait_for: Waiter) -> float:
    """When the clock process had said hello, which it does once it has waited for all GPUs."""

    def heard() -> bool:
        clock.client.heartbeat()
        clock.client.results()
        return bool(clock.client.greeted)

    assert wait_for(heard)
    return time.monotonic()


def reset_s(room: Any, index: int) -> float:
    """When its last clock change took effect."""
    return (
        float(room.node.gpus[index].clock_history(time.monotonic_ns()).changes[-1].effective_ns)
        / 1e9
    )


def test_a_gpu_that_hangs_at_opening_holds_up_no_reset(room: Any, wait_for: Waiter) -> None:
    """What an earlier process left locked is put back while the next one waits for a GPU, and that
    GPU once it is there."""
    set_faults(room.node.path, (OPENING, 1, HANG))
    clock = room.start()
    told_s = hello_s(clock, wait_for)
    assert room.locks == [None, 1005, None]
    assert max(reset_s(room, 0), reset_s(room, 2)) < told_s - OPEN_S / 2
    set_faults(room.node.path)
    assert wait_for(lambda: clock.client.heartbeat() or room.unlocked)
    assert clock.leave() == 0
    assert room.intent == []


def test_a_reset_is_tried_again_while_another_gpu_is_opened(room: Any, wait_for: Waiter) -> None:
    """A reset that the driver refuses at first does not wait for a GPU that hangs either."""
    before = gpu_controls(room.node.path, 0).set_calls
    set_faults(room.node.path, (OPENING, 1, HANG), (RESET, 0, 999))
    clock = room.start()
    assert wait_for(lambda: gpu_controls(room.node.path, 0).set_calls > before)
    set_faults(room.node.path, (OPENING, 1, HANG))
    told_s = hello_s(clock, wait_for)
    assert room.locks == [None, 1005, None]
    assert reset_s(room, 0) < told_s - OPEN_S / 4
    set_faults(room.node.path)


def test_a_reset_on_demand_leaves_what_is_not_there_for_later(room: Any) -> None:
    """`--reset` puts back what it can, names the GPU that hangs, and keeps it noted."""
    set_faults(room.node.path, (OPENING, 1, HANG))
    done = room.run("--reset")
    assert room.locks == [None, 1005, None]
    assert room.intent == [room.node.gpus[1].info.uuid]
    assert room.intent[0] in done.stderr
