"""What perseusd-clock puts back: a site's own lock where there is one; nothing of earlier boots."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perseusd.clock.intent import IntentFile
from perseusd.clock.protocol import ResultCode
from perseusd.gpus.simulated import Fault

Rooms = Callable[..., Any]
Waiter = Callable[..., bool]
STANDING = ("--standing-lock", "1200")


@pytest.mark.parametrize("end", ["reset", "close", "hang up", "SIGTERM", "heartbeat", "kill"])
def test_the_sites_own_lock_is_put_back(make_room: Rooms, wait_for: Waiter, end: str) -> None:
    """Whatever ends a lock of ours, the GPU is locked as the site has it, and not reset; a GPU
    that we never locked is left alone."""
    room = make_room()
    timeout = ("--heartbeat-timeout", "0.3" if end == "heartbeat" else "30")
    clock = room.start(*STANDING, *timeout)
    clock.result(clock.client.lock(0, 1005))
    assert set(clock.client.standing_mhz.values()) == {1200}
    match end:
        case "reset":
            assert clock.result(clock.client.reset(0)).code is ResultCode.OK
        case "close":
            clock.client.request_close()
        case "hang up":
            clock.client.close()
        case "SIGTERM":
            clock.process.send_signal(signal.SIGTERM)
        case "kill":
            clock.process.kill()
            clock.process.wait()
            assert room.locks == [1005, None]
            assert room.run("--reset", *STANDING).returncode == 0
    assert wait_for(lambda: room.locks == [1200, None])
    assert wait_for(lambda: room.intent == [] or end in ("reset", "heartbeat"))


def test_no_lock_above_the_sites_own(make_room: Rooms) -> None:
    """It is the highest clock then, also for the lowest that is allowed."""
    room = make_room(1)
    clock = room.start(*STANDING)
    assert clock.result(clock.client.lock(0, 1215)).code is ResultCode.UNSUPPORTED_CLOCK
    assert clock.result(clock.client.lock(0, 600)).code is ResultCode.OK


def test_most_particular_word_counts(make_room: Rooms) -> None:
    """One GPU's own before its model's before everybody's."""
    room = make_room(2)
    first, second = (gpu.info for gpu in room.node.gpus)
    words = ("1305", f"{second.name}=1200", f"{first.uuid}=1110")
    clock = room.start(*(word for each in words for word in ("--standing-lock", each)))
    clock.result(clock.client.reset(0))
    assert clock.client.standing_mhz == {first.uuid: 1110, second.uuid: 1200}


def test_a_standing_lock_that_cannot_be(make_room: Rooms) -> None:
    """Refused at the start, naming the nearest clock; or, where it is no clock, as usage."""
    room = make_room(1)
    done = room.run("--socket", str(room.state / "s"), "--standing-lock", "1201")
    assert done.returncode == 78
    assert "1200 MHz" in done.stderr
    assert room.run("--reset", "--standing-lock", "fast").returncode == 2


def test_a_disowned_clock_is_not_put_back(make_room: Rooms) -> None:
    """Another tool has set it: neither the end nor the next start touches it; a later lock of ours
    is ours again."""
    room = make_room()
    clock = room.start()
    for index in (0, 1):
        clock.result(clock.client.lock(index, 1005))
    room.node.gpus[0].lock_clock(900)
    clock.client.disown(0)
    assert clock.result(clock.client.reset(1)).code is ResultCode.OK
    assert room.intent == [room.node.gpus[1].info.uuid]
    clock.process.kill()
    clock.process.wait()
    assert room.run("--reset").returncode == 0
    assert room.locks == [900, None]
    again = room.start()
    again.result(again.client.lock(0, 1005))
    assert again.leave() == 0
    assert room.unlocked


def test_a_clock_of_which_nothing_is_known_cannot_be_disowned(make_room: Rooms) -> None:
    """A lock of ours may stand after a write that failed: it is put back all the same."""
    room = make_room(1)
    clock = room.start()
    clock.result(clock.client.lock(0, 1005))
    room.node.gpus[0].set_fault(Fault.FAIL)
    clock.result(clock.client.lock(0, 1200))
    clock.client.disown(0)
    room.node.gpus[0].set_fault(Fault.NONE)
    assert clock.leave() == 0
    assert room.unlocked


def test_intent_of_an_earlier_boot_resets_nothing(tmp_path: Path) -> None:
    """No lock outlives a reboot, so what stands now is somebody else's; of this boot, or of one
    that is not told, all counts."""
    path = tmp_path / "clock-intent.json"
    IntentFile(path, "earlier").add("GPU-0")
    assert not IntentFile(path, "later").may_be_locked("GPU-0")
    assert IntentFile(path, "earlier").may_be_locked("GPU-0")
    assert IntentFile(path, None).may_be_locked("GPU-0")
    path.write_text(json.dumps({"version": 1, "may_be_locked": ["GPU-1"]}))
    assert IntentFile(path, "later").may_be_locked("GPU-1")


def test_a_file_of_an_earlier_boot_is_written_over(tmp_path: Path) -> None:
    """What it named is gone from it with the first lock of this boot."""
    path = tmp_path / "clock-intent.json"
    IntentFile(path, "earlier").add("GPU-0")
    IntentFile(path, "later").add("GPU-1")
    assert IntentFile(path, "later").uuids == {"GPU-1"}


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that makes a machine seem to have slept."""
    library = tmp_path_factory.mktemp("slept") / "slept.so"
    source = Path(__file__).parent / "slept.c"
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*command, "-o", library, source], check=True)
    return library


def test_after_sleep_every_clock_is_put_back(
    make_room: Rooms, wait_for: Waiter, preloaded: Path, tmp_path: Path, monkeypatch
) -> None:
    """Drivers forget locks while a machine sleeps: they are reset, and asked for anew."""
    slept = tmp_path / "slept"
    monkeypatch.setenv("LD_PRELOAD", str(preloaded))
    monkeypatch.setenv("SLEPT", str(slept))
    room = make_room(2)
    clock = room.start("--heartbeat-timeout", "30")
    clock.result(clock.client.lock(0, 1005))
    slept.write_text("3600")
    clock.client.heartbeat()
    assert wait_for(lambda: room.unlocked)
    assert clock.result(clock.client.lock(0, 1005)).code is ResultCode.OK
    assert room.locks == [1005, None]
    assert clock.leave() == 0
    assert "slept for 3600" in clock.log()


def test_a_full_disk_locks_nothing(make_room: Rooms) -> None:
    """No byte more can be written: the lock is refused, saying so, and nothing is locked."""
    room = make_room(1)
    clock = room.start()
    clock.result(clock.client.reset(0))
    resource.prlimit(clock.process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    assert clock.result(clock.client.lock(0, 1005)).code is ResultCode.INTENT_NOT_WRITTEN
    assert room.unlocked
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.prlimit(clock.process.pid, resource.RLIMIT_FSIZE, unlimited)
    assert clock.result(clock.client.lock(0, 1005)).code is ResultCode.OK
    assert clock.leave() == 0
