"""perseusd-clock on the fake NVML library: GPUs that are slow to open, or hang at it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from nvml_faults import HANG, gpu_controls, set_faults

from perseusd.gpus import OPEN_S

Waiter = Callable[..., bool]

OPENING = "nvmlDeviceGetName"
RESET = "nvmlDeviceResetGpuLockedClocks"


@pytest.fixture
def room(left_locked: Any) -> Any:
    return left_locked


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
    """`--reset` puts back what it can, names the GPU that hangs, keeps it noted, and fails."""
    set_faults(room.node.path, (OPENING, 1, HANG))
    done = room.run("--reset")
    assert done.returncode == 1
    assert room.locks == [None, 1005, None]
    assert room.intent == [room.node.gpus[1].info.uuid]
    assert room.intent[0] in done.stderr
    assert "does not answer" in done.stderr


@pytest.mark.parametrize(
    ("function", "gpu"),
    [(OPENING, 1), (RESET, 1), ("nvmlInitWithFlags", -1), ("nvmlDeviceGetCount_v2", -1)],
)
def test_a_reset_that_failed_says_so(room: Any, function: str, gpu: int) -> None:
    """A GPU that does not open, or is not reset, or no driver at all: exit code 1, which GPU, what
    failed and what to do; and the next one puts it back."""
    uuid = room.node.gpus[1].info.uuid
    set_faults(room.node.path, (function, gpu, 999))
    done = room.run("--reset")
    assert done.returncode == 1
    assert uuid in room.intent
    lines = [line for line in done.stderr.splitlines() if "may still be locked" in line]
    (said,) = (line for line in lines if f"-i {uuid} --reset-gpu-clocks" in line)
    assert function[:8] in said
    assert str(room.state / "clock-intent.json") in said
    set_faults(room.node.path)
    done = room.run("--reset")
    assert (done.returncode, done.stderr) == (0, "")
    assert room.unlocked
    assert room.intent == []


def test_a_gpu_that_is_not_in_this_node_fails_a_reset(room: Any) -> None:
    """What is noted of a GPU that has left is kept and told, and how to be rid of it."""
    path = room.state / "clock-intent.json"
    said = json.loads(path.read_text())
    said["may_be_locked"].append("GPU-elsewhere")
    path.write_text(json.dumps(said))
    done = room.run("--reset")
    assert done.returncode == 1
    assert room.unlocked
    assert room.intent == ["GPU-elsewhere"]
    assert "GPU-elsewhere may still be locked: it is not among" in done.stderr


def test_what_a_damaged_file_may_have_named_is_not_forgotten(room: Any) -> None:
    """A GPU that did not open while the file was damaged is put back by whoever can open it, though
    the file is sound by then."""
    (room.state / "clock-intent.json").write_text("{")
    set_faults(room.node.path, (OPENING, 1, 999))
    done = room.run("--reset")
    assert done.returncode == 1
    assert "a GPU whose name is not known may still be locked" in done.stderr
    assert room.locks == [None, 1005, None]
    set_faults(room.node.path)
    assert room.run("--reset").returncode == 0
    assert room.unlocked
    assert room.intent == []
