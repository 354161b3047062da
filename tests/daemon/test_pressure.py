"""A message without end does not fill the daemon's memory."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from perseusd.daemon.access import Caller
from perseusd.daemon.doors import Door
from perseusd.daemon.pressure import PATIENCE_S, Pressure, resident_mb

GREETING = b"\xff" + b"\0" * 8 + b"\x7f\x03\0" + b"NULL".ljust(20, b"\0") + b"\0" * 32
READY = b"\x05READY\x0bSocket-Type\0\0\0\x06DEALER"
ENDLESS = b"\x03" + (16_000).to_bytes(8) + bytes(16_000)  # a long frame, and more to follow


class Room:
    """A ROUTER behind a door, and those who were cut off."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], path: Path) -> None:
        self.path, self.told = path, list[str]()
        self.socket = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.MAXMSGSIZE, 16_384)
        self.door = Door(context, self.socket, path, 100, self._tell)
        self.socket.bind(f"ipc://{path}")

    def _tell(self, caller: Caller, why: str) -> None:
        self.told.append(why)

    def raw(self) -> socket.socket:
        """A connection that speaks ZMTP by hand."""
        made = socket.socket(socket.AF_UNIX)
        made.settimeout(20)
        made.connect(str(self.path))
        made.sendall(GREETING)
        assert len(made.recv(64, socket.MSG_WAITALL)) == 64
        made.sendall(b"\x04" + bytes([len(READY)]) + READY)
        made.recv(1000)
        return made


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    with zmq.Context() as context:
        made = Room(context, tmp_path / "room.sock")
        yield made
        made.door.close()
        made.socket.close()


def send_without_end(connection: socket.socket) -> None:
    try:
        while True:
            connection.sendall(ENDLESS * 16)
    except OSError:
        pass  # cut off, as it should be


def test_who_sends_a_message_without_end_is_cut_off(room: Room) -> None:
    """It alone: the memory comes back, and another client is served."""
    pressure = Pressure([room.door], limit_mb=resident_mb() + 100)
    with zmq.Context() as context, context.socket(zmq.DEALER) as good, room.raw() as bad:
        good.connect(f"ipc://{room.path}")
        good.send(b"before")
        assert room.socket.poll(20_000)
        assert room.socket.recv_multipart()[1] == b"before"
        before_mb = most_mb = resident_mb()
        sender = threading.Thread(target=send_without_end, args=(bad,))
        sender.start()
        until = time.monotonic() + 60
        while sender.is_alive():
            assert time.monotonic() < until
            room.door.mind()
            pressure.relieve(time.monotonic())
            most_mb = max(most_mb, resident_mb())
            time.sleep(0.005)
        sender.join()
        assert room.told == ["it sends far more than is taken, and the daemon's memory fills"]
        assert most_mb > before_mb + 100
        good.send(b"after")
        assert room.socket.poll(20_000)
        assert room.socket.recv_multipart()[1] == b"after"
        while resident_mb() > before_mb + 80:
            assert time.monotonic() < until
            room.door.mind()
            pressure.relieve(time.monotonic())
            time.sleep(0.01)


def test_where_nobody_presses_all_are_cut_off_once(room: Room) -> None:
    """One that drips cannot be told from the others: all come back, and memory that does not is
    nobody's fault."""
    used_mb = 100.0
    pressure = Pressure([room.door], limit_mb=50.0, memory_mb=lambda: used_mb)
    with zmq.Context() as context, context.socket(zmq.DEALER) as good:
        good.connect(f"ipc://{room.path}")
        good.send(b"one")
        assert room.socket.poll(20_000)
        while not room.door.held(os.getuid()):
            room.door.mind()
        began_s = time.monotonic()
        pressure.relieve(began_s)
        pressure.relieve(began_s + PATIENCE_S)
        assert room.told == []
        pressure.relieve(began_s + PATIENCE_S + 0.1)
        assert room.told == ["the daemon's memory was full"]
        for after_s in (3.0, 6.0, 9.0):
            pressure.relieve(began_s + after_s)
        assert len(room.told) == 1
        assert room.socket.recv_multipart()[1] == b"one"
        good.send(b"two")  # on another connection, which it makes by itself
        assert room.socket.poll(20_000)


def test_all_is_well_most_of_the_time(room: Room) -> None:
    """Below the limit nobody is looked at, however much they send."""
    pressure = Pressure([room.door], memory_mb=lambda: 10.0)
    with room.raw() as connection:
        connection.sendall(ENDLESS)
        for turn in range(100):
            room.door.mind()
            pressure.relieve(time.monotonic() + turn)
    assert room.told == []
