"""The faults that come in through sockets: floods, garbage, forgeries, crowds, bad questions."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
from collections.abc import Iterator

import zmq
from perseus_hooks.events import Goodbye, Hello, StageEnd, StageStart
from perseus_hooks.wire import encode

from chaosparts.hand import End, Event, Hand, nothing

FLOOD = 8_000
FLOOD_S = 0.5  # where nobody takes them
CROWD = 40


class _Clients:
    """Clients of this process's. They say goodbye in the end: it lives on, and so would leases."""

    def __init__(self, hand: Hand, count: int = 1) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.dealers = [self._context.socket(zmq.DEALER) for _ in range(count)]
        for dealer in self.dealers:
            dealer.setsockopt(zmq.SNDTIMEO, 100)
            dealer.connect(f"ipc://{hand.rig.folder}/hooks.sock")

    def leave(self) -> None:
        for dealer in self.dealers:
            _send(dealer, encode(Goodbye(2**62, 1)))
        self._context.destroy(linger=200)


def _send(dealer: zmq.Socket[bytes], *frames: bytes) -> None:
    with contextlib.suppress(zmq.Again):
        dealer.send_multipart(frames)


def _hello(job: str, rank: int, gpus: tuple[str, ...]) -> Hello:
    return Hello(
        job=job, rank=rank, world_size=3, local_rank=rank, stage=rank, stages=3, replica=0,
        replicas=1, schedule="1f1b", gpus=gpus, time_source="emulated", uses_cuda=False,
        slowdown_budget=0.5, hostname="elsewhere",
    )  # fmt: skip


def _events(count: int) -> Iterator[bytes]:
    for sequence in range(1, count, 2):
        now = time.monotonic_ns()
        yield encode(StageStart(sequence, now, sequence, "forward", sequence % 4, 0, None, None))
        yield encode(StageEnd(sequence + 1, now, sequence))


def flood(hand: Hand, event: Event) -> End:
    """Thousands of events at once, of a process that said hello or did not."""
    clients = _Clients(hand)
    (dealer,) = clients.dealers
    if event.picks[0] < 0.7:
        _send(dealer, encode(_hello("flood", 0, ())))
    until_s = time.monotonic() + FLOOD_S
    for message in _events(FLOOD):
        try:
            dealer.send(message, zmq.NOBLOCK)
        except zmq.Again:
            time.sleep(0.001)
        if time.monotonic() > until_s:
            break
    return clients.leave


def garbage(hand: Hand, event: Event) -> End:
    """Random bytes, damaged messages, frames too many or too large; and no ZeroMQ at all."""
    chance = random.Random(event.picks[0])
    sound = [encode(_hello("tiny", 0, ())), *_events(6)]
    clients = _Clients(hand)
    (dealer,) = clients.dealers
    for _ in range(200):
        message = bytearray(chance.choice(sound))
        for _ in range(chance.randrange(4)):
            message[chance.randrange(len(message))] = chance.randrange(256)
        frames = [bytes(message)] * chance.choice((1, 1, 1, 2, 9))
        if chance.random() < 0.2:
            frames = [chance.randbytes(chance.choice((0, 1, 7, 5000, 200_000)))]
        _send(dealer, *frames)
    for name in ("hooks", "status", "control", "record"):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as raw:
            raw.settimeout(0.2)
            raw.connect(str(hand.rig.folder / f"{name}.sock"))
            raw.send(chance.randbytes(chance.choice((1, 64, 4096))))
    return clients.leave


def forgery(hand: Hand, event: Event) -> End:
    """Another process says that it is a rank of the job, on its GPU or on all, and trains oddly."""
    gpus = [gpu.info.uuid for gpu in hand.rig.node.gpus]
    told = event.choice(0, ((gpus[0],), tuple(gpus), ("GPU-none",), ("index:0",), ()))
    clients = _Clients(hand)
    (dealer,) = clients.dealers
    _send(dealer, encode(_hello(event.choice(1, ("tiny", "other")), 0, told)))
    for message in _events(60):
        _send(dealer, message)
    return clients.leave


def crowd(hand: Hand, _event: Event) -> End:
    """Many clients at once."""
    clients = _Clients(hand, CROWD)
    for number, dealer in enumerate(clients.dealers):
        _send(dealer, encode(_hello(f"crowd{number}", 0, ())))
    return clients.leave


def bad_questions(hand: Hand, event: Event) -> End:
    """What no one should ask of the status, control and recording sockets; answers unheard."""
    chance = random.Random(event.picks[0])
    asked = [
        b"", b"{", b"null", b"[]", b'{"command": 7}', b'{"command": "status"}' * 3, b"\xff" * 99,
        b'{"command": "straggler", "job": "root:tiny", "factor": 1e999}', b"[" * 20_000,
        b'{"command": "release", "job": "nobody"}', b'{"command": "' + b"x" * 100_000 + b'"}',
    ]  # fmt: skip
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        for name in ("status", "control", "record"):
            if not os.path.exists(hand.rig.folder / f"{name}.sock"):
                continue
            dealer = context.socket(zmq.DEALER)
            dealer.setsockopt(zmq.SNDTIMEO, 100)
            dealer.setsockopt(zmq.LINGER, 50)  # the loop forgets it
            dealer.connect(f"ipc://{hand.rig.folder}/{name}.sock")
            for _ in range(20):
                _send(dealer, b"", chance.choice(asked))
                _send(dealer, chance.choice(asked))
    finally:
        context.destroy(linger=50)
    return nothing
