"""The actuator with a real clock process on simulated GPUs, which fail and hang on demand."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from perseusd.config import load_config
from perseusd.daemon.actuator import Actuator, Failed, Written
from perseusd.errors import ConfigurationError, DaemonUnreachableError
from perseusd.gpus.simulated import SPECS, Fault, SimulatedNode, create_node

GPUS = 3


class Desk:
    """An actuator, the GPUs that it writes, and everything that it has reported."""

    def __init__(self, folder: Path, **overrides: object) -> None:
        self.node: SimulatedNode = create_node(folder / "simulated-gpus", SPECS["a100-sxm"], GPUS)
        given = {"runtime_dir": folder, "simulate": GPUS, **overrides}
        self.config = load_config(None, given, {})
        self.uuids = [gpu.info.uuid for gpu in self.node.gpus]
        self.actuator = Actuator(self.config, self.uuids)
        self.reported: list[Written | Failed] = []

    def turn(self) -> None:
        """As the daemon's loop does."""
        self.actuator.heartbeat()
        self.reported += self.actuator.results()

    def until(self, condition: Callable[[], Any], patience_s: float = 15.0) -> None:
        deadline = time.monotonic() + patience_s
        while not condition():
            assert time.monotonic() < deadline, f"in vain; reported: {self.reported}"
            self.turn()
            time.sleep(0.005)

    def locked(self) -> list[int | None]:
        return [gpu.locked_mhz() for gpu in self.node.gpus]

    def told(self) -> list[int | None]:
        """By GPU, the clock of which it was reported last that it is written."""
        last: dict[str, int | None] = {}
        for written in self.reported:
            if isinstance(written, Written):
                last[written.uuid] = written.clock_mhz
        return [last.get(uuid) for uuid in self.uuids]

    def failures(self) -> list[Failed]:
        return [r for r in self.reported if isinstance(r, Failed)]

    def lock_all(self, clock_mhz: int) -> None:
        for uuid in self.uuids:
            self.actuator.set_clock(uuid, clock_mhz)
        self.until(lambda: self.locked() == [clock_mhz] * GPUS)

    def close(self) -> None:
        for gpu in self.node.gpus:
            gpu.set_fault(Fault.NONE)
        self.actuator.stop()
        self.at_the_end = self.locked()
        self.node.close()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    made.actuator.start()
    yield made
    made.close()


def test_asks_once_and_reports_what_was_written(desk: Desk) -> None:
    """A clock that was asked for is not asked for again; its writing is told with its times."""
    before_ns = time.monotonic_ns()
    desk.lock_all(1200)
    desk.lock_all(1200)
    desk.until(lambda: len(desk.reported) == GPUS)
    assert [gpu.clock_writes() for gpu in desk.node.gpus] == [1] * GPUS
    for written in desk.reported:
        assert isinstance(written, Written)
        assert written.clock_mhz == 1200
        assert before_ns <= written.asked_ns < written.end_ns <= time.monotonic_ns()
        assert 0.004 < desk.actuator.latencies_s[written.uuid] < 2


def test_one_hanging_gpu_does_not_hold_up_the_others(desk: Desk) -> None:
    """Writes of the others are done while one hangs; it takes the newest request afterwards."""
    desk.node.gpus[1].set_fault(Fault.HANG)
    for uuid in desk.uuids:
        desk.actuator.set_clock(uuid, 1200)
    desk.until(lambda: desk.locked() == [1200, None, 1200])
    desk.actuator.set_clock(desk.uuids[1], 1005)
    desk.actuator.set_clock(desk.uuids[1], None)
    desk.node.gpus[1].set_fault(Fault.NONE)
    desk.until(lambda: desk.node.gpus[1].clock_writes() == 2)
    assert desk.locked() == [1200, None, 1200]
    assert desk.failures() == []


def test_a_failing_gpu_is_reported_and_the_others_go_on(desk: Desk) -> None:
    """The GPU, the clock and the driver's reason are named."""
    desk.node.gpus[0].set_fault(Fault.NO_PERMISSION)
    for uuid in desk.uuids:
        desk.actuator.set_clock(uuid, 1200)
    desk.until(lambda: desk.locked() == [None, 1200, 1200] and desk.failures())
    failed = desk.failures()[0]
    assert failed.uuid == desk.uuids[0]
    assert "1200 MHz" in failed.why
    assert "not permit" in failed.why


def test_a_reset_that_failed_is_tried_until_it_works(desk: Desk) -> None:
    """No later request is needed to bring the clock back."""
    desk.lock_all(1200)
    desk.node.gpus[2].set_fault(Fault.FAIL)
    desk.actuator.set_clock(desk.uuids[2], None)
    desk.until(desk.failures)
    assert "full clock" in desk.failures()[0].why
    assert desk.node.gpus[2].locked_mhz() == 1200
    desk.node.gpus[2].set_fault(Fault.NONE)
    desk.until(lambda: desk.node.gpus[2].locked_mhz() is None, 4)


def test_a_lock_that_failed_leaves_no_older_lock_in_force(desk: Desk) -> None:
    """The daemon then takes the GPU for unlocked: so it has to become that, once it can."""
    desk.lock_all(1200)
    desk.node.gpus[0].set_fault(Fault.FAIL)
    desk.actuator.set_clock(desk.uuids[0], 1005)
    desk.until(desk.failures)
    desk.actuator.set_clock(desk.uuids[0], None)  # as releasing the job asks for
    desk.node.gpus[0].set_fault(Fault.NONE)
    desk.until(lambda: desk.node.gpus[0].locked_mhz() is None, 4)
    assert desk.locked()[1:] == [1200, 1200]


def test_too_many_writes_leave_no_older_lock_in_force(desk: Desk) -> None:
    """The clock process refuses a flood of locks; what it refused must not leave the last one."""
    clocks = [1200, 1005]
    for number in range(60):
        desk.actuator.set_clock(desk.uuids[0], clocks[number % 2])
        wanted = len(desk.reported) + 1
        desk.until(lambda wanted=wanted: len(desk.reported) >= wanted)
        if desk.failures():
            break
    assert "too many" in desk.failures()[0].why
    assert desk.actuator.requested[desk.uuids[0]] is None
    desk.until(lambda: desk.node.gpus[0].locked_mhz() is None, 4)


def test_a_clock_below_the_floor_is_refused(desk: Desk) -> None:
    """Even if the daemon asked for it: the clock process has the last word."""
    desk.actuator.set_clock(desk.uuids[0], 510)
    desk.until(desk.failures)
    assert "below the lowest clock" in desk.failures()[0].why
    assert desk.locked() == [None] * GPUS


def test_late_heartbeats_put_clocks_back_and_are_told(desk: Desk) -> None:
    """Locks of a daemon that hung are gone; it finds out, and can lock again."""
    desk.lock_all(1200)
    deadline = time.monotonic() + 5
    while desk.locked() != [None] * GPUS:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    desk.until(desk.failures)
    assert desk.failures()[0].uuid is None
    assert "heartbeat" in desk.failures()[0].why
    assert set(desk.actuator.requested.values()) == {None}
    desk.lock_all(1005)


def test_a_killed_clock_process_is_started_again(desk: Desk) -> None:
    """The new one undoes what the killed one left, and takes requests."""
    desk.lock_all(1200)
    process = desk.actuator._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    desk.until(lambda: not desk.actuator.alive)
    assert desk.locked() == [1200] * GPUS
    assert set(desk.actuator.requested.values()) == {None}
    desk.until(lambda: desk.locked() == [None] * GPUS)
    assert desk.failures()[0].uuid is None
    desk.until(lambda: desk.actuator.alive)
    desk.lock_all(1005)


def test_what_a_killed_clock_process_was_still_to_reset_is_told(desk: Desk) -> None:
    """It hung, its daemon asked for full clocks in vain, and it was killed: nobody answers those
    requests, and a job of which one were taken for lowered for ever could not be measured."""
    desk.lock_all(1200)
    desk.until(lambda: desk.told() == [1200] * GPUS)
    process = desk.actuator._process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    for uuid in desk.uuids[:2]:
        desk.actuator.set_clock(uuid, None)
    os.kill(process.pid, signal.SIGKILL)
    desk.until(lambda: not desk.actuator.alive)
    assert desk.told() == [None] * GPUS
    desk.until(lambda: desk.actuator.alive)
    desk.lock_all(1005)
    desk.until(lambda: desk.told() == [1005] * GPUS)


def test_a_reset_after_a_lock_that_failed_is_told(desk: Desk) -> None:
    """Nobody asked for it, and no later request is: full clock is what was asked for last."""
    desk.lock_all(1200)
    desk.until(lambda: desk.told() == [1200] * GPUS)
    desk.actuator.set_clock(desk.uuids[0], 510)  # below the floor
    desk.until(desk.failures)
    desk.actuator.set_clock(desk.uuids[0], None)  # as releasing the job asks for
    desk.until(lambda: desk.locked()[0] is None and desk.told()[0] is None)
    assert desk.told() == [None, 1200, 1200]


def test_a_clock_of_ours_that_another_tool_replaced_is_told_to_be_gone(desk: Desk) -> None:
    """Once theirs is gone, too: nothing is written then, since the clock is full."""
    desk.lock_all(1200)
    desk.until(lambda: desk.told() == [1200] * GPUS)
    desk.actuator.respect(desk.uuids[1])
    desk.actuator.reclaim(desk.uuids[1], reset=False)
    desk.until(lambda: desk.told() == [1200, None, 1200])


def test_stop_puts_clocks_back_and_leaves_no_process(desk: Desk) -> None:
    """Within a second when the driver works."""
    desk.lock_all(1200)
    process = desk.actuator._process
    assert process is not None
    began_s = time.monotonic()
    desk.actuator.stop()
    assert desk.locked() == [None] * GPUS
    assert time.monotonic() - began_s < 1
    assert process.poll() == 0


def test_stop_is_bounded_when_a_driver_call_hangs(desk: Desk) -> None:
    """The others are back at once; the hanging one costs seconds, not for ever, and says so."""
    desk.lock_all(1200)
    desk.node.gpus[1].set_fault(Fault.HANG)
    process = desk.actuator._process
    assert process is not None
    began_s = time.monotonic()
    desk.actuator.stop()
    assert time.monotonic() - began_s < 8
    assert desk.locked() == [None, 1200, None]
    assert process.poll() == 1


def test_observe_only_has_no_clock_process(tmp_path: Path) -> None:
    """Whatever is asked for, nothing is started and nothing written."""
    desk = Desk(tmp_path, observe=True)
    desk.actuator.start()
    desk.actuator.set_clock(desk.uuids[0], 1200)
    for _ in range(20):
        desk.turn()
    assert not desk.actuator.alive
    assert desk.actuator._process is None
    assert desk.reported == []
    assert [gpu.clock_writes() for gpu in desk.node.gpus] == [0] * GPUS
    desk.close()


def test_a_configured_clock_socket_must_answer(tmp_path: Path) -> None:
    """A daemon that is told where its clock process listens does not start one of its own."""
    desk = Desk(tmp_path, clock_socket=tmp_path / "nobody.sock")
    with pytest.raises(DaemonUnreachableError, match=r"nobody\.sock.*is it running"):
        desk.actuator.start()
    desk.close()


def test_a_lock_asked_for_before_the_lost_heartbeat_was_noticed_is_undone(desk: Desk) -> None:
    """A daemon that was stopped may ask on before it reads the news; the news must then win."""
    desk.lock_all(1200)
    time.sleep(1.5)  # no heartbeat
    desk.actuator.heartbeat()
    desk.actuator.set_clock(desk.uuids[0], 1005)
    desk.until(desk.failures)
    desk.actuator.set_clock(desk.uuids[0], None)  # as releasing the job asks for
    settled_s = time.monotonic() + 0.5
    desk.until(lambda: time.monotonic() > settled_s)
    assert desk.locked() == [None] * GPUS
    assert set(desk.actuator.requested.values()) == {None}


def test_a_clock_process_of_its_own_unit_is_reached_again(tmp_path: Path) -> None:
    """As under systemd: it listens on a socket, is killed with clocks lowered, and comes back."""
    listens = tmp_path / "clock.sock"
    desk = Desk(tmp_path, clock_socket=listens)
    command = [sys.executable, "-m", "perseusd.clock", "--socket", str(listens)]
    command += ["--state-dir", str(tmp_path / "state")]
    command += ["--simulated", str(desk.config.simulated_file)]

    def reached() -> bool:
        try:
            desk.actuator.start()
        except DaemonUnreachableError:
            return False
        return True

    with subprocess.Popen(command) as first:
        try:
            desk.until(reached)
            desk.lock_all(1200)
        finally:
            first.kill()
    desk.until(lambda: not desk.actuator.alive)
    assert desk.locked() == [1200] * GPUS
    with subprocess.Popen(command) as second:
        try:
            desk.until(lambda: desk.locked() == [None] * GPUS)
            desk.until(lambda: desk.actuator.alive)
            desk.lock_all(1005)
            desk.actuator.stop()
            assert desk.locked() == [None] * GPUS
        finally:
            second.terminate()
    assert second.returncode == 0
    desk.close()


def test_the_sites_own_lock_is_put_back_and_told(tmp_path: Path) -> None:
    """Its clock process gets it from the configuration, and says which GPUs have it."""
    desk = Desk(tmp_path, standing_lock_mhz={"*": 1305})
    desk.actuator.start()
    try:
        assert desk.actuator.standing_mhz == dict.fromkeys(desk.uuids, 1305)
        desk.lock_all(1200)
        desk.actuator.set_clock(desk.uuids[0], None)
        desk.until(lambda: desk.locked() == [1305, 1200, 1200])
    finally:
        desk.close()
    assert desk.at_the_end == [1305] * GPUS


def _starts(actuator: Actuator) -> bool:
    """The socket's file is there a moment before anyone listens."""
    try:
        actuator.start()
    except DaemonUnreachableError:
        return False
    return actuator.alive


def test_a_clock_process_that_serves_another_daemon(tmp_path: Path, desk: Desk) -> None:
    """The second daemon does not start, and is told of whom the first is."""
    socket = tmp_path / "clock.sock"
    command = [sys.executable, "-m", "perseusd.clock", "--socket", str(socket)]
    command += ["--state-dir", str(tmp_path / "own"), "--simulated", str(desk.node.path)]
    process = subprocess.Popen(command)
    first, second = (
        Actuator(load_config(None, {"runtime_dir": tmp_path, "clock_socket": socket}, {}), [])
        for _ in range(2)
    )
    try:
        desk.until(lambda: _starts(first))
        with pytest.raises(ConfigurationError, match=f"process {os.getpid()}"):
            second.start()
    finally:
        first.stop()
        process.terminate()
        process.wait(10)
