"""Two clock processes at once: what the first has noted, until its very end, the next knows."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from perseusd.clock.protocol import ResultCode

Rooms = Callable[..., Any]
Waiter = Callable[..., bool]

STARTED_S = 0.5
"""A process that waits for another tells nobody; it has read nothing later than this."""


def test_a_successor_knows_what_was_locked_while_it_waited(
    make_room: Rooms, wait_for: Waiter
) -> None:
    """A GPU that the first locks while the second is waiting for it is put back by the second."""
    room = make_room()
    first = room.start()
    assert first.result(first.client.lock(0, 1005)).code is ResultCode.OK
    second = room.start()
    until_s = time.monotonic() + STARTED_S
    while time.monotonic() < until_s:
        first.client.heartbeat()
        time.sleep(0.02)
    assert first.result(first.client.lock(1, 1005)).code is ResultCode.OK
    first.process.kill()
    assert wait_for(lambda: room.unlocked)
    assert second.result(second.client.lock(1, 1110)).code is ResultCode.OK
    assert room.locks == [None, 1110]
    assert room.node.gpus[1].info.uuid in room.intent


def test_a_reset_takes_no_note_away_from_a_process_that_lives(make_room: Rooms) -> None:
    """What a living process has noted is its own: a reset beside it refuses and changes nothing."""
    room = make_room()
    first = room.start("--heartbeat-timeout", "30")
    assert first.result(first.client.lock(0, 1005)).code is ResultCode.OK
    done = room.run("--reset")
    assert done.returncode == 78
    assert str(first.process.pid) in done.stderr
    assert room.locks == [1005, None]
    assert room.intent == [room.node.gpus[0].info.uuid]
