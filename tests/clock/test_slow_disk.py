"""A disk that takes seconds, or for ever, holds up the first lock of a GPU and nothing else."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perseusd.clock.protocol import ResultCode

Rooms = Callable[..., Any]
Waiter = Callable[..., bool]

SLOW_S = 4
FOR_EVER_S = 600


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that makes the disk slow."""
    library = tmp_path_factory.mktemp("slowdisk") / "slowdisk.so"
    source = Path(__file__).parent / "slowdisk.c"
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*command, "-o", library, source], check=True)
    return library


@pytest.fixture
def disk(preloaded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that says how many seconds a write takes."""
    monkeypatch.setenv("LD_PRELOAD", str(preloaded))
    monkeypatch.setenv("SLOW_DISK", str(tmp_path / "seconds"))
    return tmp_path / "seconds"


def locked(room: Any, *arguments: str) -> Any:
    """A clock process under which GPUs 0 and 1 are locked."""
    clock = room.start(*arguments)
    for index in (0, 1):
        assert clock.result(clock.client.lock(index, 1005)).code is ResultCode.OK
    return clock


def test_other_gpus_are_written_meanwhile(make_room: Rooms, disk: Path) -> None:
    """While it is being saved that a GPU is not ours any more, another one's clock is changed, and
    in the end it has been saved."""
    room = make_room()
    clock = locked(room)
    disk.write_text(str(SLOW_S))
    clock.client.disown(0)
    before_s = time.monotonic()
    assert clock.result(clock.client.lock(1, 1110)).code is ResultCode.OK
    assert time.monotonic() - before_s < SLOW_S / 2
    assert room.locks[1] == 1110
    disk.unlink()
    assert clock.leave() == 0
    assert room.locks == [1005, None]
    assert room.intent == []


def test_a_disk_that_hangs_leaves_no_clock_lowered(
    make_room: Rooms, disk: Path, wait_for: Waiter
) -> None:
    """It hangs while something is saved, and a daemon that hangs then is noticed all the same; what
    could not be saved stays in the file, and costs a needless reset."""
    room = make_room()
    clock = locked(room, "--heartbeat-timeout", "0.5")
    disk.write_text(str(FOR_EVER_S))
    clock.client.disown(0)
    assert wait_for(lambda: room.locks == [1005, None], 3.0)
    clock.client.close()
    assert clock.process.wait(20) == 0
    assert room.intent == sorted(gpu.info.uuid for gpu in room.node.gpus)
    assert "the disk takes very long" in clock.log()


def test_a_first_lock_waits_for_the_disk(make_room: Rooms, disk: Path, wait_for: Waiter) -> None:
    """No GPU is lowered before the file names it, however long that takes; one that the file names
    already is lowered meanwhile."""
    room = make_room()
    clock = room.start()
    assert clock.result(clock.client.lock(0, 1005)).code is ResultCode.OK
    disk.write_text(str(FOR_EVER_S))
    clock.client.lock(1, 1005)
    before_s = time.monotonic()
    assert clock.result(clock.client.lock(0, 1110)).code is ResultCode.OK
    assert time.monotonic() - before_s < 2
    assert room.locks == [1110, None]
    clock.client.close()
    assert wait_for(lambda: room.unlocked, 2.0)


def test_no_save_takes_away_what_is_locked_meanwhile(
    make_room: Rooms, disk: Path, wait_for: Waiter
) -> None:
    """A GPU that is locked again while it is being saved that it was not ours: it is named in the
    end, whatever was under way."""
    room = make_room()
    clock = locked(room, "--heartbeat-timeout", "30")
    uuid = room.node.gpus[0].info.uuid
    disk.write_text("1")
    clock.client.disown(0)
    assert wait_for((room.state / "clock-intent.json.new").exists)
    assert clock.result(clock.client.lock(0, 1110)).code is ResultCode.OK
    assert uuid in room.intent
    time.sleep(2.5)  # longer than what was under way, a write of the file and one of its folder
    assert uuid in room.intent
    disk.unlink()
    assert clock.leave() == 0
