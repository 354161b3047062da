"""The hooks' socket: messages in, with the kernel's word for who sent them; answers out.

What a message says about its sender is never believed: uid and pid come from the socket's peer
credentials. A client that sends garbage, too much, or what it may not, is refused with a reason,
and nobody else notices.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, cast

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

from perseusd.daemon.access import Caller, caller_of
from perseusd.daemon.doors import Door
from perseusd.daemon.leases import Leases, ProcessGoneError
from perseusd.daemon.quotas import HELLOS_PER_S, Bucket, Quotas, Use
from perseusd.daemon.waiting import has_come
from perseusd.logs import MessageId, fields

log = logging.getLogger(__name__)

TAKING_S = 0.004
"""How long one turn of the loop takes messages and acts on them: what is left waits for the next,
so that a backlog holds up no clock write, heartbeat or answer."""

KEPT_PEERS = 4096
"""Senders that need not be worked out anew for each message."""

INTRODUCE_EVERY_S = 0.5
"""How often an unknown client is asked to say hello."""

LARGEST_FRAME = 4 * MAX_MESSAGE_BYTES
"""Up to this, a message that is too large is answered with the reason; beyond, ZeroMQ hangs up."""

KEPT_MESSAGES = 4096
"""Of one connection, not yet taken: what is more stays with its sender."""

CONNECTIONS_PER_CLIENT = 2
"""A process that comes back on another connection may leave one behind for a moment."""

GOODBYE = b"\x93\xa1g"
"""How one begins: it costs little, ends a lease, and is taken even from who says too much."""

FEW = 4
"""Messages that most often come together."""

LOG_EVERY_S = 1.0
"""How often refusals of one kind are logged: who sends garbage may not fill the disk with it."""

KEPT_REFUSALS = 32

KEPT_REASONS = 256
"""That are in the log already, with the process that was told them."""


ClientEvent = Hello | StageStart | StageEnd | Goodbye
"""What a client may send."""

_CLIENT_EVENTS: Final = frozenset({Hello, StageStart, StageEnd, Goodbye})

_NOBLOCK: Final = int(zmq.NOBLOCK)  # zmq's own name takes as long to convert as the call


class Peer(NamedTuple):
    """Who sent a message, by the kernel's word. client: its connection, for the core."""

    identity: bytes
    caller: Caller
    client: str

    @classmethod
    def of(cls, identity: bytes, caller: Caller) -> Peer:
        return cls(identity, caller, f"{caller.pid}:{identity.hex()}")

    @property
    def uid(self) -> int:
        return self.caller.uid

    @property
    def pid(self) -> int:
        return self.caller.pid


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
    """use: its user's."""

    peer: Peer
    events: Bucket
    use: Use


@dataclass(frozen=True)
class Limits:
    """Who may speak, and how much.

    events_per_s: of one client. user_events_per_s: of all of one user's together.
    max_clients: of everybody. max_clients_per_user: of those, one user's.
    """

    allows: Callable[[Caller], bool]
    events_per_s: float
    max_clients: int
    user_events_per_s: float = 60_000
    max_clients_per_user: int = 256


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
    _over_told_s: dict[tuple[int, str], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.backlog = False
        """Whether there was more to receive than time for it."""
        self._quotas = Quotas(self.limits.user_events_per_s)
        self._clients_of: Counter[int] = Counter()
        self._peers: dict[tuple[bytes, int | bytes | str], Peer] = {}
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, KEPT_MESSAGES)
        self.socket.setsockopt(zmq.MAXMSGSIZE, LARGEST_FRAME)
        connections = CONNECTIONS_PER_CLIENT * self.limits.max_clients_per_user
        self.door = Door(self.context, self.socket, self.path, connections, self._turned_away)
        self.socket.bind(f"ipc://{self.path}")
        os.chmod(self.path, 0o666)  # noqa: S103 - every user's training may speak; uid is checked

    def limit(self, limits: Limits) -> None:
        """Other limits from now on; leases that there are stay."""
        self.limits = limits
        self._quotas = Quotas(limits.user_events_per_s)
        self.door.per_user = CONNECTIONS_PER_CLIENT * limits.max_clients_per_user
        for client in self._clients.values():
            client.events = Bucket(limits.events_per_s, limits.events_per_s)
            client.use = self._quotas.of(client.peer.uid)

    def receive(self) -> Iterator[Message]:
        """Events of known clients and hellos of any, for TAKING_S at most."""
        until_s = time.monotonic() + TAKING_S
        self.backlog = False
        with contextlib.suppress(zmq.Again):
            for taken in itertools.count():
                # To ask costs less than the exception that would tell.
                if 0 < taken < FEW and not has_come(self.socket):
                    return
                if (message := self._next()) is not None:
                    yield message
                if time.monotonic() > until_s:
                    self.backlog = True
                    return

    def _next(self) -> Message | None:
        """The next message that came, if it is one to act on; zmq.Again where none came."""
        receive = self.socket.recv
        identity = receive(_NOBLOCK)
        frame = receive(_NOBLOCK, copy=False)
        if frame.more:
            self._too_many_frames(identity, frame)
            return None
        peer = self._peer(identity, frame)
        return None if peer is None else self._accept(peer, frame.bytes)

    def _too_many_frames(self, identity: bytes, frame: zmq.Frame) -> None:
        """A message is one frame; the others are taken, so that the next one is found."""
        peer, frames = self._peer(identity, frame), 1
        last = frame
        while last.more:
            last = self.socket.recv(_NOBLOCK, copy=False)
            frames += 1
        if peer is not None:
            self.refuse(peer, "malformed", f"a message of {frames} frames came: send one each")

    def _peer(self, identity: bytes, frame: zmq.Frame) -> Peer | None:
        """None where the kernel does not say who sent it.

        Asked of each message: the next one of this identity may be another process's.
        """
        try:
            key = identity, frame.get("Peer-Address")
        except zmq.ZMQError:
            return None
        peer = self._peers.get(key)
        if peer is None and (caller := caller_of(frame)) is not None:
            if len(self._peers) >= KEPT_PEERS:
                self._peers.clear()
            peer = self._peers[key] = Peer.of(identity, caller)
        return peer

    def welcome(self, peer: Peer) -> bool:
        """Begin a lease after a hello; False where the process is gone or there is no room."""
        known = peer.client in self._clients
        if not known and (crowded := self._no_room(peer.uid)):
            self.refuse(peer, "too_many_clients", crowded)
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
        if not known:
            limit = self.limits.events_per_s
            use = self._quotas.of(peer.uid)
            self._clients[peer.client] = _Client(peer, Bucket(limit, limit), use)
            self._clients_of[peer.uid] += 1
        self._send(peer, Welcome())
        return True

    def _no_room(self, uid: int) -> str:
        """Why there is none for one more client of this user; empty where there is."""
        own = self._clients_of[uid]
        if own >= self.limits.max_clients_per_user:
            return (
                f"{own} clients of uid {uid} are served already ([limits] max_clients_per_user): "
                "end some, or have the limit raised"
            )
        if len(self._clients) >= self.limits.max_clients:
            return (
                f"{len(self._clients)} clients are served already ([limits] max_clients): "
                "end some, or have the limit raised"
            )
        return ""

    def forget(self, client: str) -> None:
        """Its lease has ended; were it to speak again, it would be asked to say hello."""
        known = self._clients.pop(client, None)
        if known is not None:
            self.leases.remove(client, known.peer.pid)
            self._clients_of[known.peer.uid] -= 1
            if not self._clients_of[known.peer.uid]:
                del self._clients_of[known.peer.uid]
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
        return [peer for peer in peers if not self.limits.allows(peer.caller)]

    def refuse(self, peer: Peer, code: str, reason: str) -> None:
        """Tell a client why not, and keep count for status and doctor."""
        self._count(peer, code, reason)
        if self._quotas.of(peer.uid).answers.take(time.monotonic()):
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
        told_of = fields(MessageId.REFUSED, peer_pid=pid, peer_uid=uid, code=code)
        log.warning("refused process %d of uid %d: %s: %s", pid, uid, code, reason, extra=told_of)

    def close(self) -> None:
        self.leases.close()
        self.door.close()
        self.socket.close()
        with contextlib.suppress(OSError):
            self.path.unlink()

    def _accept(self, peer: Peer, payload: bytes) -> Message | None:
        now, client = time.monotonic(), self._clients.get(peer.client)
        use = self._quotas.of(peer.uid) if client is None else client.use
        if over := self._over(client, use, now):
            if client is not None and payload.startswith(GOODBYE):
                return self._decoded(peer, payload)
            self._tell_over(peer, over, now)
            return None  # a client's next event shows the gap, and its job goes to full clock
        if client is None and not self.limits.allows(peer.caller):
            self.refuse(peer, "not_permitted", not_among(peer.uid))
            return None
        message = self._decoded(peer, payload)
        if message is None or (client is not None and type(message.event) is not Hello):
            return message
        if not isinstance(message.event, Hello):
            self._introduce(peer)
            return None
        if use.hellos.take(now):
            return message
        self._tell_over(peer, f"more hellos than one user may say ({HELLOS_PER_S:g} a second)", now)
        return None

    def _decoded(self, peer: Peer, payload: bytes) -> Message | None:
        try:
            event = decode(payload)
        except WireError as error:
            self.refuse(peer, error.code, str(error))
            return None
        if type(event) not in _CLIENT_EVENTS:
            self.refuse(peer, "malformed", f"{type(event).__name__} is for the daemon to send")
            return None
        return Message(peer, cast(ClientEvent, event))

    def _over(self, client: _Client | None, use: Use, now: float) -> str:
        """Which limit this message is beyond; empty where it is not."""
        if client is None:
            return "" if use.strangers.take(now) else "too many messages without a lease"
        if not client.events.take(now):
            limit = self.limits.events_per_s
            return f"more than {limit:g} events a second ([limits] events_per_s)"
        if not use.events.take(now):
            limit = self.limits.user_events_per_s
            return f"more than {limit:g} events a second of one user ([limits] user_events_per_s)"
        return ""

    def _tell_over(self, peer: Peer, what: str, now: float) -> None:
        """Counted each time; told now and then, for an answer to each would be a flood too."""
        reason = f"{what}; what is beyond is dropped"
        key = (peer.uid, what) if peer.client not in self._clients else (peer.pid, peer.client)
        if now - self._over_told_s.get(key, -LOG_EVERY_S) >= LOG_EVERY_S:
            if len(self._over_told_s) >= KEPT_REASONS:
                del self._over_told_s[next(iter(self._over_told_s))]
            self._over_told_s[key] = now
            self.refuse(peer, "too_many_events", reason)
        else:
            self._count(peer, "too_many_events", reason)

    def _turned_away(self, caller: Caller, why: str) -> None:
        self._count(Peer.of(b"", caller), "too_many_connections", why)

    def _introduce(self, peer: Peer) -> None:
        now = time.monotonic()
        if now - self._asked_s.get(peer.client, 0.0) >= INTRODUCE_EVERY_S:
            if len(self._asked_s) > 4 * self.limits.max_clients:
                self._asked_s.clear()
            self._asked_s[peer.client] = now
            self._send(peer, Introduce())

    def _send(self, peer: Peer, event: Event) -> None:
        with contextlib.suppress(zmq.ZMQError):  # gone, or not reading: its own loss
            self.socket.send_multipart([peer.identity, encode(event)], zmq.NOBLOCK)


def not_among(uid: int) -> str:
    """Why a user is not served."""
    return (
        f"uid {uid} is not among [access] allow_users and allow_groups: have the administrator "
        "add it"
    )
