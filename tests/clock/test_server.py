"""perseusd-clock as a real process: locks while the daemon lives, full clocks whatever happens."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perseusd.clock.client import ClockClient
from perseusd.clock.desks import Desks
from perseusd.clock.guard import Limits
from perseusd.clock.intent import IntentFile
from perseusd.clock.protocol import Heartbeat, ResultCode, encode
from perseusd.clock.server import ClockServer, Timeouts
from perseusd.gpus.simulated import Fault

Rooms = Callable[..., Any]
Waiter = Callable[..., bool]


def test_lock_and_reset(make_room: Rooms) -> None:
    """A lock and a reset reach the GPU they name, with the times of the driver call."""
    room = make_room()
    clock = room.start()
    result = clock.result(clock.client.lock(1, 1005))
    assert (result.gpu_index, result.clock_mhz, result.code) == (1, 1005, ResultCode.OK)
    assert result.end_ns - result.start_ns >= 5_000_000
    assert result.end_ns <= time.monotonic_ns()
    assert result.observed_mhz in (1005, 1410)
    assert room.locks == [None, 1005]
    assert clock.client.gpus == {gpu.info.index: gpu.info.uuid for gpu in room.node.gpus}
    assert clock.result(clock.client.reset(1)).code is ResultCode.OK
    assert room.locks == [None, None]
    assert clock.leave() == 0
    assert clock.log() == ""


def test_refusals_are_told_and_nothing_is_written(make_room: Rooms) -> None:
    """Unknown GPU, unsupported clock, too low a clock: a result says so, no GPU is touched."""
    room = make_room()
    clock = room.start("--min-clock-fraction", "0.6")
    for gpu_index, clock_mhz, code in (
        (7, 1005, ResultCode.UNKNOWN_GPU),
        (0, 1006, ResultCode.UNSUPPORTED_CLOCK),
        (0, 0, ResultCode.UNSUPPORTED_CLOCK),
        (0, 840, ResultCode.BELOW_FLOOR),
    ):
        assert clock.result(clock.client.lock(gpu_index, clock_mhz)).code is code
    assert [gpu.clock_writes() for gpu in room.node.gpus] == [0, 0]
    assert clock.leave() == 0


def test_refused_lock_ends_the_older_one(make_room: Rooms) -> None:
    """When a lock is refused the one it was to replace does not stay: the GPU is reset."""
    room = make_room()
    clock = room.start()
    clock.result(clock.client.lock(0, 1005))
    assert clock.result(clock.client.lock(0, 1006)).code is ResultCode.UNSUPPORTED_CLOCK
    unasked = clock.result(0)
    assert (unasked.gpu_index, unasked.clock_mhz, unasked.code) == (0, 0, ResultCode.OK)
    assert room.unlocked


def test_requests_of_a_burst_are_coalesced(make_room: Rooms) -> None:
    """Of many requests sent while a write runs the last one holds; each gets its result."""
    room = make_room(1, write_latency_s=0.1)
    clock = room.start()
    numbers = [clock.client.lock(0, 900 + 15 * i) for i in range(20)]
    codes = [clock.result(number).code for number in numbers]
    assert codes[-1] is ResultCode.OK
    assert codes.count(ResultCode.SUPERSEDED) >= 10
    assert room.locks == [900 + 15 * 19]
    assert room.node.gpus[0].clock_writes() == codes.count(ResultCode.OK)


def test_intent_is_on_disk_before_the_driver_is_called(make_room: Rooms, wait_for: Waiter) -> None:
    """While the driver call hangs the file names the GPU already; after leaving it names none."""
    room = make_room()
    room.node.gpus[1].set_fault(Fault.HANG)
    clock = room.start()
    clock.client.lock(1, 1005)
    assert wait_for(lambda: room.intent == [room.node.gpus[1].info.uuid])
    assert room.unlocked
    room.node.gpus[1].set_fault(Fault.NONE)
    assert clock.leave() == 0
    assert room.unlocked
    assert room.intent == []


def test_no_lock_without_intent_on_disk(make_room: Rooms) -> None:
    """When the intent file cannot be written nothing is locked, and the daemon is told."""
    room = make_room()
    clock = room.start()
    clock.result(clock.client.reset(0))  # so that it has started
    (room.state / "clock-intent.json.new").mkdir()
    assert clock.result(clock.client.lock(0, 1005)).code is ResultCode.INTENT_NOT_WRITTEN
    assert room.node.gpus[0].locked_mhz() is None
    (room.state / "clock-intent.json.new").rmdir()
    assert clock.result(clock.client.lock(0, 1005)).code is ResultCode.OK
    assert clock.leave() == 0


@pytest.mark.parametrize("child", [False, True])
def test_killed_daemon_leaves_full_clocks(make_room: Rooms, wait_for: Waiter, child: bool) -> None:
    """After kill −9 of the daemon all eight clocks are back within 1 s, even while a child of the
    daemon holds the socket open."""
    room = make_room(8)
    daemon, _ = room.daemon("--heartbeat-timeout", "30", child=child)
    try:
        assert room.locks == [1005] * 8
        daemon.kill()
        assert wait_for(lambda: room.unlocked, 1.0)
        assert wait_for(lambda: room.intent == [])
    finally:
        if child:
            os.kill(room.child_pid, signal.SIGKILL)


def test_stopped_daemon_loses_its_locks(make_room: Rooms, wait_for: Waiter) -> None:
    """A daemon stopped by SIGSTOP loses its locks after the heartbeat timeout, not before."""
    room = make_room()
    daemon, _ = room.daemon("--heartbeat-timeout", "0.5")
    time.sleep(1.0)
    assert room.locks == [1005, 1005]
    daemon.send_signal(signal.SIGSTOP)
    assert wait_for(lambda: room.unlocked, 2.0)
    daemon.kill()


def test_locks_are_refused_until_the_heartbeat_is_back(make_room: Rooms, wait_for: Waiter) -> None:
    """Without heartbeat: clocks back, the daemon told, locks refused; with it all goes on."""
    room = make_room()
    clock = room.start("--heartbeat-timeout", "0.3")
    clock.result(clock.client.lock(0, 1005))
    assert wait_for(lambda: clock.seen.extend(clock.client.results()) or room.unlocked)
    assert clock.client.heartbeats_lost == 1
    number = clock.client.lock(0, 1005)
    assert wait_for(
        lambda: (
            clock.seen.extend(clock.client.results())
            or any(result.request_id == number for result in clock.seen)
        )
    )
    assert clock.result(number).code is ResultCode.NO_HEARTBEAT  # and sends heartbeats again
    assert clock.result(clock.client.lock(0, 1005)).code is ResultCode.OK
    assert clock.leave() == 0
    assert "no heartbeat" in clock.log()


def test_close_puts_back_and_hangs_up(make_room: Rooms, wait_for: Waiter) -> None:
    """A daemon that says it is done sees the connection end only once every clock is back."""
    room = make_room(4)
    clock = room.start()
    for index in range(4):
        clock.result(clock.client.lock(index, 1005))
    clock.client.request_close()
    assert wait_for(lambda: clock.client.results() is None or not clock.client.alive)
    assert room.unlocked
    assert clock.process.wait(10) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_put_clocks_back(make_room: Rooms, number: signal.Signals) -> None:
    """Told to stop, it leaves with every clock back; Ctrl-C is not for it."""
    room = make_room()
    clock = room.start()
    clock.result(clock.client.lock(0, 1005))
    clock.process.send_signal(signal.SIGINT)
    assert clock.result(clock.client.lock(1, 1005)).code is ResultCode.OK
    clock.process.send_signal(number)
    assert clock.process.wait(10) == 0
    assert room.unlocked
    assert room.intent == []


@pytest.mark.parametrize("how", ["reset", "start"])
def test_own_death_is_made_good(make_room: Rooms, wait_for: Waiter, how: str) -> None:
    """Killed by SIGKILL it leaves locks; `--reset` or the next start finds them on disk."""
    room = make_room()
    clock = room.start()
    clock.result(clock.client.lock(0, 1005))
    clock.process.kill()
    clock.process.wait()
    assert room.locks == [1005, None]
    if how == "reset":
        assert room.run("--reset").returncode == 0
    else:
        again = room.start()
        assert wait_for(lambda: room.unlocked)
        assert again.leave() == 0
    assert room.unlocked
    assert room.intent == []
    assert room.node.gpus[1].clock_writes() == 0


def test_reset_without_intent_touches_nothing(make_room: Rooms) -> None:
    """With nothing noted on disk `--reset` opens no GPU and succeeds."""
    room = make_room()
    room.node.path.unlink()
    assert room.run("--reset").returncode == 0


def test_damaged_intent_resets_all(make_room: Rooms) -> None:
    """A damaged intent file means that any GPU may be locked: all are reset, and it is said."""
    room = make_room(3)
    room.node.gpus[2].lock_clock(1005)
    room.state.mkdir()
    (room.state / "clock-intent.json").write_text("{")
    done = room.run("--reset")
    assert done.returncode == 0
    assert "damaged" in done.stderr
    assert room.unlocked
    assert [gpu.clock_writes() for gpu in room.node.gpus] == [1, 1, 2]
    assert room.intent == []


def test_hanging_gpu_holds_up_nobody_else(make_room: Rooms, wait_for: Waiter) -> None:
    """A hung driver call: other GPUs are still locked and reset; leaving says which may be locked,
    fails, and leaves it on disk for the next start."""
    room = make_room(3)
    clock = room.start()
    for index in range(3):
        clock.result(clock.client.lock(index, 1005))
    room.node.gpus[0].set_fault(Fault.HANG)
    clock.client.lock(0, 1200)
    assert clock.result(clock.client.lock(1, 1200)).code is ResultCode.OK
    clock.client.close()
    assert wait_for(lambda: room.locks == [1005, None, None], 1.0)
    assert clock.process.wait(20) == 1
    assert room.node.gpus[0].info.uuid in clock.log()
    assert room.intent == [room.node.gpus[0].info.uuid]
    room.node.gpus[0].set_fault(Fault.NONE)
    assert room.run("--reset").returncode == 0
    assert room.unlocked


def test_failing_reset_is_tried_again(make_room: Rooms, wait_for: Waiter) -> None:
    """While the driver refuses the reset it is repeated, and it ends well once that works."""
    room = make_room(1)
    clock = room.start()
    clock.result(clock.client.lock(0, 1005))
    room.node.gpus[0].set_fault(Fault.FAIL)
    assert clock.result(clock.client.lock(0, 1200)).code is ResultCode.FAILED
    clock.client.close()
    time.sleep(0.3)
    assert room.locks == [1005]
    room.node.gpus[0].set_fault(Fault.NONE)
    assert clock.process.wait(10) == 0
    assert room.unlocked


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault.FAIL, ResultCode.FAILED),
        (Fault.LOST, ResultCode.LOST),
        (Fault.NO_PERMISSION, ResultCode.NO_PERMISSION),
    ],
)
def test_driver_errors_have_codes(make_room: Rooms, fault: Fault, code: ResultCode) -> None:
    """What the driver said comes to the daemon as a code and to the log in words."""
    room = make_room(1)
    clock = room.start()
    room.node.gpus[0].set_fault(fault)
    assert clock.result(clock.client.lock(0, 1005)).code is code
    room.node.gpus[0].set_fault(Fault.NONE)
    assert clock.leave() == 0
    assert room.node.gpus[0].info.uuid in clock.log()


def test_nonsense_ends_the_lease(make_room: Rooms, wait_for: Waiter) -> None:
    """A daemon that sends what is no request is cut off, and its locks are undone."""
    room = make_room(1)
    clock = room.start()
    clock.result(clock.client.lock(0, 1005))
    nonsense = socket.socket(fileno=os.dup(clock.client.fileno()))
    nonsense.send(b"nonsense")
    nonsense.close()
    assert clock.process.wait(10) == 0
    assert room.unlocked
    assert "clock protocol" in clock.log()


class Listening:
    """A server on a listening socket, on a thread of this process, for users of our choice."""

    def __init__(self, room: Any, allowed_uids: set[int]) -> None:
        room.state.mkdir()
        self.path: Path = room.state / "clock.sock"
        self.logged: list[str] = []
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(str(self.path))
        listener.listen()
        intent = IntentFile(room.state / "clock-intent.json")
        desks = Desks(room.node.gpus, intent, Limits(), self.logged.append)
        self.server = ClockServer(desks, Timeouts(heartbeat_s=30), self.logged.append)
        self.restored: list[bool] = []

        def run() -> None:
            with listener:
                self.restored.append(self.server.listen(listener, allowed_uids))

        self.thread = threading.Thread(target=run)
        self.thread.start()

    def stop(self) -> None:
        self.server.stop("the test has ended")
        self.thread.join(10)
        assert self.restored == [True]


def test_listening_serves_one_daemon_after_another(make_room: Rooms, wait_for: Waiter) -> None:
    """A second daemon is refused while the first is there; when that leaves, its locks are undone
    and the next one is served."""
    room = make_room()
    listening = Listening(room, {os.getuid()})
    try:
        first = ClockClient.connect(listening.path)
        first.lock(0, 1005)
        assert wait_for(lambda: room.locks == [1005, None])
        second = ClockClient.connect(listening.path)
        assert wait_for(lambda: second.results() == [] and not second.alive)
        first.close()
        assert wait_for(lambda: room.unlocked and room.intent == [])
        third = ClockClient.connect(listening.path)
        third.lock(1, 1005)
        assert wait_for(lambda: room.locks == [None, 1005])
        third.request_close()
        assert wait_for(lambda: third.results() is None or not third.alive)
        assert room.unlocked
        for client in (second, third):
            client.close()
    finally:
        listening.stop()


def test_listening_refuses_other_users(make_room: Rooms, wait_for: Waiter) -> None:
    """A process of a user that is not allowed is cut off before it can say anything."""
    room = make_room(1)
    listening = Listening(room, {os.getuid() + 1})
    try:
        stranger = ClockClient.connect(listening.path)
        stranger.lock(0, 1005)
        assert wait_for(lambda: stranger.results() is None or not stranger.alive)
        assert room.node.gpus[0].clock_writes() == 0
        assert any(f"user {os.getuid()} refused" in line for line in listening.logged)
        stranger.close()
    finally:
        listening.stop()


def test_dead_clock_process_is_noticed_by_its_client(make_room: Rooms, wait_for: Waiter) -> None:
    """After kill −9 of the clock process the client says so, and requests come back as not sent."""
    room = make_room(1)
    clock = room.start()
    clock.result(clock.client.lock(0, 1005))
    clock.process.kill()
    assert wait_for(lambda: clock.client.results() is None or not clock.client.alive)
    number = clock.client.reset(0)
    (result,) = clock.client.results()
    assert (result.request_id, result.code) == (number, ResultCode.NOT_SENT)


def test_client_never_waits_for_a_stopped_clock_process(make_room: Rooms) -> None:
    """With the clock process stopped requests soon come back as not sent, at once."""
    room = make_room(1)
    clock = room.start()
    clock.result(clock.client.reset(0))
    clock.process.send_signal(signal.SIGSTOP)
    before = time.monotonic()
    for _ in range(2000):
        clock.client.heartbeat()
        clock.client.reset(0)
    assert time.monotonic() - before < 5
    assert ResultCode.NOT_SENT in {result.code for result in clock.client.results()}
    clock.process.send_signal(signal.SIGCONT)


def test_heartbeat_is_one_byte() -> None:
    """What is sent most often is smallest."""
    assert len(encode(Heartbeat())) == 1
