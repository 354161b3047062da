"""The two ways into the C libraries: straight, and through pyzmq and os where that is not there."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import zmq
from perseus_hooks import connection
from perseus_hooks.connection import SEND_QUEUE, Connection
from perseus_hooks.events import Goodbye, Introduce, StageEnd
from perseus_hooks.wire import encode


@pytest.fixture(params=["direct", "through pyzmq"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "direct":
        monkeypatch.setattr(connection, "_BACKEND", "zmq.no_such_backend")
        monkeypatch.setattr(connection, "_libc", None)
    return str(request.param)


def test_messages_go_both_ways(way: str, daemon: Any, runtime_dir: str, until: Any) -> None:
    """Either way what is sent arrives, what is answered is read, and nothing to read is None."""
    link = Connection(f"{runtime_dir}/hooks.sock")
    link.wait_until_connected(5000)
    assert link.receive() is None
    assert link.send(encode(StageEnd(0, 1, 2)))
    assert daemon.receive() == [StageEnd(0, 1, 2)]
    daemon.send(Introduce())
    assert until(link.receive) == encode(Introduce())
    assert link.send(encode(Goodbye(3, 4)))
    link.close()
    assert daemon.receive() == [Goodbye(3, 4)]


def test_nothing_is_queued_for_nobody(way: str, runtime_dir: str) -> None:
    """Without a daemon a message is not taken, so that none is stale when one comes."""
    link = Connection(f"{runtime_dir}/hooks.sock")
    assert not any(link.send(b"x") for _ in range(2 * SEND_QUEUE))
    link.close()


def test_the_straight_way_is_there() -> None:
    """From pyzmq 26 on: without it a busy thread costs 5 ms a call."""
    link = Connection("/nonexistent/hooks.sock")
    way = link.send.__qualname__.partition(".")[0]
    link.close()
    assert way == ("_direct" if zmq.pyzmq_version_info() >= (26,) else "_through_pyzmq")


def test_a_file_is_there_or_not(way: str, tmp_path: Path) -> None:
    """Either way, whatever bytes its name has."""
    name = str(tmp_path / "sockét\udcff")
    assert not connection.exists(name)
    Path(name).touch()
    assert connection.exists(name)


def test_too_few_descriptors_are_an_error_and_none_is_kept(way: str) -> None:
    """libzmq would abort the process."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 8, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files") as caught:
            Connection("/nonexistent/hooks.sock")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert caught.value.errno == errno.EMFILE
    assert len(os.listdir("/proc/self/fd")) == before
