"""The hooks' socket: messages in, with the kernel's word for who sent them; answers out.

What a message says about its sender is never believed: uid and pid come from the socket's peer
credentials. A client that sends garbage, too much, or what it may not, is refused with a reason,
and nobody else notices.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pwd
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import zmq
from perseus_hooks.events import (
    Event,
    Goodbye,
    Hello,
    Introduce,
    Refusal,
    StageEnd,
    StageStart,
    Welcome,
)
from perseus_hooks.wire import (
    MAX_MESSAGE_BYTES,
    MAX_STRING_BYTES,
    WireError,
    decode,
    encode,
)

from perseusd.daemon.leases import Leases, ProcessGoneError

log = logging.getLogger(__name__)

BATCH = 2000
"""Messages taken per turn of the loop: the rest waits so that timers stay punctual."""

INTRODUCE_EVERY_S = 0.5
"""How often an unknown client is asked to say hello."""

LARGEST_FRAME = 4 * MAX_MESSAGE_BYTES
"""Up to this, a message that is too large is answered with the reason; beyond, ZeroMQ hangs up."""

LOG_EVERY_S = 1.0
"""How often refusals of one kind are logged: who sends garbage may not fill the disk with it."""

KEPT_REFUSALS = 32

KEPT_REASONS = 256
"""That are in the log already, with the process that was told them."""


ClientEvent = Hello | StageStart | StageEnd | Goodbye
"""What a client may send."""


class Peer(NamedTuple):
    """Who sent a message, by the kernel's word."""

    identity: bytes
    uid: int
    pid: int

    @property
    def client(self) -> str:
        return f"{self.pid}:{self.identity.hex()}"


class Message(NamedTuple):
    peer: Peer
    event: ClientEvent


@dataclass
class Refused:
    """One user's refusals of one code, counted; `reason` and `pid` are the latest."""

    code: str
    reason: str = ""
    pid: int = 0
    count: int = 0
    last_s: float = 0.0
    logged_s: float = 0.0


@dataclass
class _Client:
    peer: Peer
    tokens: float
    filled_s: float
    told_s: float = 0.0


@dataclass(frozen=True)
class Limits:
    """Who may speak, and how much."""

    allows: Callable[[int], bool]
    events_per_s: float
    max_clients: int


@dataclass
class Intake:
    """Owns the ROUTER socket and the leases of those who said hello."""

    context: zmq.Context[zmq.Socket[bytes]]
    path: Path
    limits: Limits
    leases: Leases = field(default_factory=Leases)
    refused: dict[tuple[int, str], Refused] = field(default_factory=dict)
    refusals: Counter[str] = field(default_factory=Counter)
    """By code, since the start."""
    _clients: dict[str, _Client] = field(default_factory=dict)
    _asked_s: dict[str, float] = field(default_factory=dict)
    _told: dict[tuple[int, str, str], None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, 100_000)
        self.socket.setsockopt(zmq.MAXMSGSIZE, LARGEST_FRAME)
        self.socket.bind(f"ipc://{self.path}")
        os.chmod(self.path, 0o666)  # noqa: S103 - every user's training may speak; uid is checked

    def receive(self) -> Iterator[Message]:
        """Events of known clients and hellos of any, at most BATCH."""
        for _ in range(BATCH):
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            peer = _peer(frames[0].bytes, frames[-1])
            if peer is None:
                continue
            if len(frames) != 2:
                count = len(frames) - 1
                self.refuse(peer, "malformed", f"a message of {count} frames came: send one each")
                continue
            message = self._accept(peer, frames[1].bytes)
            if message is not None:
                yield message

    def welcome(self, peer: Peer) -> bool:
        """Begin a lease after a hello; False where the process is gone or there is no room."""
        if peer.client not in self._clients and len(self._clients) >= self.limits.max_clients:
            self.refuse(
                peer, "too_many_clients", f"{len(self._clients)} clients are served already"
            )
            return False
        try:
            self.leases.add(peer.client, peer.pid)
        except ProcessGoneError:
            self.refuse(
                peer,
                "process_not_visible",
                f"perseusd cannot see process {peer.pid}: in a container it needs the host's "
                "process namespace (hostPID)",
            )
            return False
        now = time.monotonic()
        self._clients.setdefault(peer.client, _Client(peer, self.limits.events_per_s, now))
        self._send(peer, Welcome())
        return True

    def forget(self, client: str) -> None:
        """Its lease has ended; were it to speak again, it would be asked to say hello."""
        known = self._clients.pop(client, None)
        if known is not None:
            self.leases.remove(client, known.peer.pid)
        self._asked_s.pop(client, None)

    @property
    def clients(self) -> int:
        """That have said hello, and are there."""
        return len(self._clients)

    def peer(self, client: str) -> Peer | None:
        known = self._clients.get(client)
        return known.peer if known else None

    def not_allowed(self) -> list[Peer]:
        """Whose lease the limits, as they are now, do not allow any more."""
        peers = [client.peer for client in self._clients.values()]
        return [peer for peer in peers if not self.limits.allows(peer.uid)]

    def refuse(self, peer: Peer, code: str, reason: str) -> None:
        """Tell a client why not, and keep count for status and doctor."""
        self._count(peer, code, reason)
        fitting = reason.encode()[:MAX_STRING_BYTES].decode(errors="ignore")
        self._send(peer, Refusal(code, fitting))

    def _count(self, peer: Peer, code: str, reason: str) -> None:
        key = (peer.uid, code)
        if key not in self.refused and len(self.refused) >= KEPT_REFUSALS:
            del self.refused[min(self.refused, key=lambda k: self.refused[k].last_s)]
        entry = self.refused.setdefault(key, Refused(code))
        entry.count += 1
        self.refusals[code] += 1
        entry.reason, entry.pid, entry.last_s = reason, peer.pid, time.monotonic()
        told = peer.pid, code, reason
        if told not in self._told and entry.last_s - entry.logged_s >= LOG_EVERY_S:
            entry.logged_s = entry.last_s
            self._tell(told, peer.uid)

    def _tell(self, told: tuple[int, str, str], uid: int) -> None:
        """One line for each reason of each process, however often it tries again."""
        if len(self._told) >= KEPT_REASONS:
            del self._told[next(iter(self._told))]
        self._told[told] = None
        pid, code, reason = told
        log.warning("refused process %d of uid %d: %s: %s", pid, uid, code, reason)

    def close(self) -> None:
        self.leases.close()
        self.socket.close()
        with contextlib.suppress(OSError):
            self.path.unlink()

    def _accept(self, peer: Peer, payload: bytes) -> Message | None:
        if not self.limits.allows(peer.uid):
            self.refuse(peer, "not_permitted", not_among(peer.uid))
            return None
        try:
            event = decode(payload)
        except WireError as error:
            self.refuse(peer, error.code, str(error))
            return None
        if not isinstance(event, Hello | StageStart | StageEnd | Goodbye):
            self.refuse(peer, "malformed", f"{type(event).__name__} is for the daemon to send")
            return None
        client = self._clients.get(peer.client)
        if client is not None:
            passes = isinstance(event, Goodbye) or self._within_rate(client)
            return Message(peer, event) if passes else None
        if isinstance(event, Hello):
            return Message(peer, event)
        self._introduce(peer)
        return None

    def _introduce(self, peer: Peer) -> None:
        now = time.monotonic()
        if now - self._asked_s.get(peer.client, 0.0) >= INTRODUCE_EVERY_S:
            if len(self._asked_s) > 4 * self.limits.max_clients:
                self._asked_s.clear()
            self._asked_s[peer.client] = now
            self._send(peer, Introduce())

    def _within_rate(self, client: _Client) -> bool:
        now = time.monotonic()
        limit = self.limits.events_per_s
        client.tokens = min(limit, client.tokens + (now - client.filled_s) * limit)
        client.filled_s = now
        if client.tokens < 1:
            self._over_rate(client, now)
            return False  # its next event shows the gap, and its job goes to full clock
        client.tokens -= 1
        return True

    def _over_rate(self, client: _Client, now: float) -> None:
        """Counted each time; told now and then, for an answer to each would be a flood too."""
        reason = (
            f"more than {self.limits.events_per_s:g} events a second ([limits] events_per_s); "
            "what is beyond is dropped"
        )
        if now - client.told_s >= LOG_EVERY_S:
            client.told_s = now
            self.refuse(client.peer, "too_many_events", reason)
        else:
            self._count(client.peer, "too_many_events", reason)

    def _send(self, peer: Peer, event: Event) -> None:
        with contextlib.suppress(zmq.ZMQError):  # gone, or not reading: its own loss
            self.socket.send_multipart([peer.identity, encode(event)], zmq.NOBLOCK)


def _peer(identity: bytes, frame: zmq.Frame) -> Peer | None:
    """From the socket's credentials, `host:uid:gid:pid` on ipc; None without them."""
    try:
        address = frame.get("Peer-Address")
        _, uid, _, pid = str(address).rsplit(":", 3)
        return Peer(identity, int(uid), int(pid))
    except (zmq.ZMQError, ValueError, TypeError):
        return None


def not_among(uid: int) -> str:
    """Why a user is not served."""
    return f"uid {uid} is not among [access] allow_users"


def user_name(uid: int) -> str:
    """The user's name, or the number where the system has none for it."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
