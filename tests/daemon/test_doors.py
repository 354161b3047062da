"""Connections are counted for their user, and those that are too many are shut down."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from perseusd.daemon.access import Caller
from perseusd.daemon.doors import Door, raise_descriptor_limit

MOST = 5


class Listening:
    """A ROUTER behind a door, and those who were turned away."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], path: Path) -> None:
        self.path, self.told = path, list[tuple[Caller, str]]()
        self.socket = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.door = Door(context, self.socket, path, MOST, lambda *told: self.told.append(told))
        self.socket.bind(f"ipc://{path}")

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline
            self.door.mind()
            time.sleep(0.002)


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Listening]:
    with zmq.Context() as context:
        made = Listening(context, tmp_path / "door.sock")
        yield made
        made.door.close()
        made.socket.close()


@pytest.fixture
def many_descriptors() -> Iterator[int]:
    """As many as this process may have, for the time of a test."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        yield raise_descriptor_limit()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextlib.contextmanager
def connections(path: Path, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(count)]
        for connection in made:
            connection.connect(str(path))
        yield made


def test_one_too_many_is_shut_down_and_told(listening: Listening) -> None:
    """Those that were there before stay; the reason names the limit, and whose they are."""
    with connections(listening.path, MOST):
        listening.until(lambda: listening.door.held(os.getuid()) == MOST)
        assert listening.told == []
        with connections(listening.path, 2):
            listening.until(lambda: len(listening.told) == 2)
            listening.until(lambda: listening.door.held(os.getuid()) == MOST)
        caller, why = listening.told[0]
        assert (caller.uid, caller.pid) == (os.getuid(), os.getpid())
        assert f"{MOST} connections" in why


def test_who_has_gone_makes_room(listening: Listening) -> None:
    """Again and again, and whoever speaks ZeroMQ is served as ever."""
    for _ in range(3):
        with connections(listening.path, MOST):
            listening.until(lambda: listening.door.held(os.getuid()) == MOST)
        listening.until(lambda: listening.door.held(os.getuid()) == 0)
    assert listening.told == []
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.connect(f"ipc://{listening.path}")
        dealer.send(b"hello")
        listening.until(lambda: listening.door.held(os.getuid()) == 1)
        assert listening.socket.poll(5000)
        assert listening.socket.recv_multipart()[1] == b"hello"


FLOODED = """
import resource, sys, time, zmq
from pathlib import Path
from perseusd.daemon.doors import Door
resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 1000))
with zmq.Context() as context, context.socket(zmq.ROUTER) as listening:
    door = Door(context, listening, Path(sys.argv[1]), 20)
    listening.bind(f"ipc://{sys.argv[1]}")
    print("listens", flush=True)
    while listening.poll(5):
        door.mind()
    end = time.monotonic() + 60
    while time.monotonic() < end and not listening.poll(1):
        door.mind()
    print(listening.recv_multipart()[1].decode(), flush=True)
    door.close()
"""


def test_a_flood_of_connections_does_not_end_the_process(
    tmp_path: Path, many_descriptors: int
) -> None:
    """ZeroMQ alone would abort: more connections come than there are descriptors, and then a
    client is served."""
    path = tmp_path / "flooded.sock"
    process = subprocess.Popen(
        [sys.executable, "-c", FLOODED, str(path)], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "listens\n"
        with contextlib.ExitStack() as stack:
            for _ in range(30):
                stack.enter_context(connections(path, 50))
                time.sleep(0.01)
        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.setsockopt(zmq.LINGER, 1000)
            dealer.connect(f"ipc://{path}")
            dealer.send(b"still here")
            assert process.stdout.readline() == "still here\n"
        assert process.wait(20) == 0


def test_as_many_descriptors_as_may_be() -> None:
    """The soft limit is raised to the hard one."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        assert raise_descriptor_limit() == before[1]
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
