"""What the loop waits for: nothing that came stays unheard, whatever sockets were used for."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import zmq

from perseusd.daemon.waiting import Waiting, has_come

Socket = zmq.Socket[bytes]


class Pair(NamedTuple):
    ours: Socket
    theirs: Socket
    identity: bytes


class Room:
    """Connected sockets of one context."""

    def __init__(self, context: zmq.Context[Socket], folder: Path) -> None:
        self.context, self.folder, self.made = context, folder, list[Socket]()

    def pair(self, name: str) -> Pair:
        ours, theirs = self.context.socket(zmq.ROUTER), self.context.socket(zmq.DEALER)
        self.made += [ours, theirs]
        for socket in (ours, theirs):
            socket.setsockopt(zmq.LINGER, 0)
        ours.bind(f"ipc://{self.folder}/{name}")
        theirs.connect(f"ipc://{self.folder}/{name}")
        theirs.send(b"hello")
        identity, _ = ours.recv_multipart()
        return Pair(ours, theirs, identity)


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    with zmq.Context() as context:
        made = Room(context, tmp_path)
        yield made
        for socket in made.made:
            socket.close()


def heard(waiting: Waiting, socket: Socket, most: int = 100) -> bytes:
    """What comes, once the waiting says so; it may say so in vain a few times."""
    for _ in range(most):
        if socket in waiting.wait(2.0) and has_come(socket):
            return socket.recv_multipart()[-1]
    raise AssertionError("nothing was heard")


@pytest.mark.parametrize("kind", ["used", "heard"])
def test_every_message_is_heard_one_at_a_time(room: Room, kind: str) -> None:
    """A thousand that come at once, of which each turn takes one: the last one is heard, too."""
    pair = room.pair("a")
    ours = [pair.ours]
    waiting = Waiting(ours, ()) if kind == "used" else Waiting((), ours)
    for number in range(1000):
        pair.theirs.send(b"%d" % number)
    assert [int(heard(waiting, pair.ours)) for _ in range(1000)] == list(range(1000))
    waiting.close()


def test_a_socket_that_is_sent_to_meanwhile_is_still_heard(room: Room) -> None:
    """To send takes the sign that something came from the socket's descriptor."""
    pair = room.pair("a")
    waiting = Waiting([pair.ours], ())
    for number in range(200):
        waiting.wait(0.0)
        pair.theirs.send(b"%d" % number)
        time.sleep(0.001)
        pair.ours.send_multipart([pair.identity, b"unasked"])
        assert int(heard(waiting, pair.ours)) == number
    waiting.close()


def test_an_answer_between_two_questions_hides_neither(room: Room) -> None:
    """The second question came before the first one's answer was sent."""
    pair, other = room.pair("a"), room.pair("b")
    waiting = Waiting([other.ours], [pair.ours])
    for number in range(200):
        pair.theirs.send(b"%d" % number)
        pair.theirs.send(b"and")
        assert int(heard(waiting, pair.ours)) == number
        pair.ours.send_multipart([pair.identity, b"answer"])
        assert heard(waiting, pair.ours) == b"and"
    waiting.close()


def test_where_nothing_comes_it_waits(room: Room) -> None:
    pair = room.pair("a")
    waiting = Waiting([pair.ours], ())
    while waiting.wait(0.0):
        pass
    began_s = time.monotonic()
    assert waiting.wait(0.1) == set()
    assert time.monotonic() - began_s >= 0.1
    waiting.close()


def test_descriptors_come_and_go() -> None:
    """Those of now are told, whoever had their number before."""
    waiting = Waiting((), ())
    first, second = os.pipe(), os.pipe()
    waiting.watch({first[0]})
    os.write(second[1], b"x")
    assert waiting.wait(0.0) == set()
    waiting.watch({first[0], second[0]})
    assert waiting.wait(0.0) == {second[0]}
    os.close(second[0])
    os.dup2(first[0], second[0])  # the number is another one's now
    waiting.watch({first[0], second[0]})
    os.write(first[1], b"x")
    assert waiting.wait(0.0) == {first[0], second[0]}
    waiting.watch({second[0]})
    assert waiting.wait(0.0) == {second[0]}
    for descriptor in (*first, *second):
        os.close(descriptor)
    waiting.watch(())
    waiting.close()
