"""What the controller is told, sent to whoever records it; costs nothing while nobody does.

A ROUTER socket: who asks gets a header, everybody who is present, and from then on every input, in
the format of recordings. Inputs are sent some at a time. A listener that does not keep up loses
whole batches, and is told how many inputs were in them; nobody else notices, and nothing waits.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import zmq

from perseusd.daemon.access import Access, Caller, caller_of
from perseusd.daemon.doors import Door
from perseusd.traces.recording import DROPPED, Header, Input, pack, pack_header
from perseusd.traces.replay import RecordedController

log = logging.getLogger(__name__)

MOST_LISTENERS = 4
MOST_LISTENERS_PER_USER = 3
"""One place is left for somebody else."""

MAX_REQUEST_BYTES = 4096
CONNECTIONS_PER_USER = 16
BATCH_BYTES = 64 * 1024
BATCH_S = 0.05
"""A batch is sent when it is as large or as old as this."""

KEPT_BATCHES = 512
"""Sent and not yet taken, per listener: at the usual 20 a second enough for half a minute."""

REQUESTS = 32
"""Taken per turn of the loop."""

LINGER_MS = 100
"""For the last words of a daemon that stops."""

THE_END = b""
"""The daemon stops: there is no more to record."""


@dataclass
class _Listener:
    uid: int
    dropped: int = 0
    """Inputs that it has lost since it was last told."""


@dataclass
class Recorder:
    """Owns the socket; sets the controller's sink while somebody listens.

    emulated: whether the GPUs are. clocks: what every GPU is locked at now, None for full clock.
    """

    context: zmq.Context[zmq.Socket[bytes]]
    path: Path
    controller: RecordedController
    emulated: bool
    clocks: Callable[[], Mapping[str, int | None]]
    access: Access = field(default_factory=Access)
    _listeners: dict[bytes, _Listener] = field(default_factory=dict)
    _batch: bytearray = field(default_factory=bytearray)
    _inputs: int = 0
    _since_s: float = 0.0

    def __post_init__(self) -> None:
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, LINGER_MS)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # a full queue is an error, not a loss
        self.socket.setsockopt(zmq.SNDHWM, KEPT_BATCHES)
        self.socket.setsockopt(zmq.MAXMSGSIZE, MAX_REQUEST_BYTES)
        self.socket.setsockopt(zmq.RCVHWM, REQUESTS)
        self.door = Door(self.context, self.socket, self.path, CONNECTIONS_PER_USER)
        self.socket.bind(f"ipc://{self.path}")
        os.chmod(self.path, 0o666)  # noqa: S103 - who may listen is asked of each

    def hear(self) -> None:
        """Requests to listen, or not any more, without waiting."""
        for _ in range(REQUESTS):
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self._answer(frames[0].bytes, caller_of(frames[-1]), frames[-1].bytes)

    def flush(self, *, now: bool = False) -> None:
        """Send what has gathered, if it is time."""
        if self._batch and (now or time.monotonic() - self._since_s >= BATCH_S):
            batch, inputs = bytes(self._batch), self._inputs
            self._batch.clear()
            self._inputs = 0
            for identity, listener in list(self._listeners.items()):
                self._send_batch(identity, listener, batch, inputs)

    def close(self) -> None:
        self.flush(now=True)
        for identity in list(self._listeners):
            self._send(identity, THE_END)
            self._forget(identity)
        self.door.close()
        self.socket.close()
        with contextlib.suppress(OSError):
            self.path.unlink()

    def _answer(self, identity: bytes, caller: Caller | None, request: bytes) -> None:
        command = _command(request)
        if command == "stop":
            self._forget(identity)
        elif command != "record":
            self._refuse(identity, "bad_request", 'send {"command": "record"}')
        elif caller is None or not self.access.may_read_all(caller):
            self._refuse(
                identity,
                "not_permitted",
                "a recording holds everybody's jobs: root, the daemon's own user, the admin group "
                "and the groups of [access] status_readers may make one",
            )
        elif identity not in self._listeners and (crowded := self._crowded(caller.uid)):
            self._refuse(identity, "too_many", crowded)
        else:
            self.flush(now=True)  # what came before is not for the new one
            if self._send(identity, self._beginning()):
                self._listeners[identity] = _Listener(caller.uid)
                self.controller.sink = self._take

    def _crowded(self, uid: int) -> str:
        own = sum(listener.uid == uid for listener in self._listeners.values())
        if own >= MOST_LISTENERS_PER_USER:
            return f"{own} recordings of this user are being made already: end one"
        if len(self._listeners) >= MOST_LISTENERS:
            return f"{MOST_LISTENERS} recordings are being made already"
        return ""

    def _beginning(self) -> bytes:
        """Header and who is there, with the clocks that are not full."""
        now_ns = time.monotonic_ns()
        present = self.controller.present()
        lowered = {uuid: mhz for uuid, mhz in self.clocks().items() if mhz is not None}
        present += [Input("written", (u, mhz, now_ns, now_ns)) for u, mhz in lowered.items()]
        header = Header(
            settings=self.controller.settings,
            gpus=self.controller.gpus,
            emulated=self.emulated,
            complete=not self.controller.jobs,
            start_ns=now_ns,
            patient=self.controller.patient,
        )
        return b"".join([pack_header(header), *map(pack, present)])

    def _take(self, told: Input) -> None:
        try:
            packed = pack(told)
        except (TypeError, ValueError, OverflowError):  # must not become the controller's trouble
            log.exception("cannot be recorded: %s", told.name)
            packed = pack(Input(DROPPED, (1,)))
        if not self._batch:
            self._since_s = time.monotonic()
        self._batch += packed
        self._inputs += 1
        if len(self._batch) >= BATCH_BYTES:
            self.flush(now=True)

    def _forget(self, identity: bytes) -> None:
        self._listeners.pop(identity, None)
        if not self._listeners:
            self.controller.sink = None
            self._batch.clear()
            self._inputs = 0

    def _send_batch(self, identity: bytes, listener: _Listener, batch: bytes, inputs: int) -> None:
        news = pack(Input(DROPPED, (listener.dropped,))) if listener.dropped else b""
        if self._send(identity, news + batch):
            listener.dropped = 0
        else:
            listener.dropped += inputs

    def _send(self, identity: bytes, data: bytes) -> bool:
        """False where its queue is full; one that is gone is forgotten."""
        try:
            self.socket.send_multipart([identity, data], zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError:
            self._forget(identity)
            return False
        return True

    def _refuse(self, identity: bytes, code: str, error: str) -> None:
        answer = {"ok": False, "code": code, "error": error}
        self._send(identity, json.dumps(answer).encode())


def _command(request: bytes) -> object:
    try:
        asked = json.loads(request)
    except (ValueError, RecursionError):
        return None
    return asked.get("command") if isinstance(asked, dict) else None
