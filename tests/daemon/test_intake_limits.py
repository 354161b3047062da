"""Limits of the hooks' socket, for each client and for each user, without a daemon around it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from perseus_hooks.events import Event, Goodbye, Hello, Introduce, Refusal, StageEnd, Welcome
from perseus_hooks.wire import decode, encode

from perseusd.daemon.access import Caller
from perseusd.daemon.intake import Intake, Limits, Message
from perseusd.daemon.quotas import HELLOS_AT_ONCE, STRANGERS_AT_ONCE

Sent = Event | bytes


class Node:
    """An intake, and clients that all are this process."""

    def __init__(self, path: Path, context: zmq.Context[zmq.Socket[bytes]], **limits: Any) -> None:
        chosen = {"events_per_s": 1000.0, "max_clients": 10} | limits
        self.allowed = True
        self.intake = Intake(context, path, Limits(self.allows, **chosen))
        self._context, self._path = context, path
        self._clients: list[zmq.Socket[bytes]] = []

    def allows(self, caller: Caller) -> bool:
        return self.allowed

    def client(self) -> zmq.Socket[bytes]:
        made = self._context.socket(zmq.DEALER)
        made.setsockopt(zmq.LINGER, 0)
        made.connect(f"ipc://{self._path}")
        self._clients.append(made)
        return made

    def take(self, client: zmq.Socket[bytes], *sent: Sent) -> list[Message]:
        """What comes of these messages; a hello that gets through is welcomed, if it can be."""
        for message in sent:
            client.send(message if isinstance(message, bytes) else encode(message))
        taken: list[Message] = []
        seen, until = 0, time.monotonic() + 20
        while seen < len(sent):
            assert time.monotonic() < until
            assert self.intake.socket.poll(20_000)
            before = self._counted()
            got: list[Message] = []
            for message in self.intake.receive():
                got.append(message)
                if isinstance(message.event, Hello):
                    self.intake.welcome(message.peer)
                if isinstance(message.event, Goodbye):
                    self.intake.forget(message.peer.client)
            taken += got
            seen += len(got) + self._counted() - before
        return taken

    def _counted(self) -> int:
        """Refused, or asked to introduce themselves."""
        return sum(self.intake.refusals.values()) + len(self.intake._asked_s)

    def heard(self, client: zmq.Socket[bytes]) -> list[Event]:
        answers = []
        while client.poll(100):
            answers.append(decode(client.recv()))
        return answers

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self.intake.close()


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    with zmq.Context() as context:
        made: list[Node] = []

        def make(**limits: Any) -> Node:
            made.append(Node(tmp_path / f"{len(made)}.sock", context, **limits))
            return made[-1]

        yield make
        for node in made:
            node.close()


def hello(job: str = "a") -> Hello:
    return Hello(job, 0, None, None, None, None, None, None, None, (), "host", False, None, "here")


def end(sequence: int) -> StageEnd:
    return StageEnd(sequence, 1, 1)


def test_so_many_clients_of_one_user(make_node: Callable[..., Node]) -> None:
    """One more is refused with the limit's name; one that says goodbye makes room."""
    node = make_node(max_clients_per_user=2)
    first, second, third = node.client(), node.client(), node.client()
    for client in (first, second, third):
        node.take(client, hello())
    assert [type(answer) for answer in node.heard(second)] == [Welcome]
    (refusal,) = node.heard(third)
    assert isinstance(refusal, Refusal)
    assert refusal.code == "too_many_clients"
    assert "[limits] max_clients_per_user" in refusal.reason
    node.take(first, Goodbye(1, 1))
    node.take(third, hello())
    assert [type(answer) for answer in node.heard(third)] == [Welcome]
    assert node.intake.clients == 2


def test_a_backlog_is_known_until_it_is_taken(make_node: Callable[..., Node]) -> None:
    """Nothing more is left to gather while there is more to take than one turn has time for."""
    node = make_node(events_per_s=1e6)
    client = node.client()
    node.take(client, hello())
    assert not node.intake.backlog
    sent = 4000
    for number in range(sent):
        client.send(encode(end(number + 1)))
    assert node.intake.socket.poll(20_000)
    backlogs, taken, until = [], 0, time.monotonic() + 20
    while taken < sent and time.monotonic() < until:
        taken += sum(1 for _ in node.intake.receive())
        backlogs.append(node.intake.backlog)
    assert taken == sent
    assert any(backlogs)
    assert list(node.intake.receive()) == []
    assert not node.intake.backlog


def test_events_of_a_user_are_those_of_all_its_clients(make_node: Callable[..., Node]) -> None:
    """Each stays within its own limit, and together they do not; a goodbye gets through."""
    node = make_node(user_events_per_s=30)
    loud, other = node.client(), node.client()
    node.take(loud, hello())
    node.take(other, hello())
    taken = node.take(loud, *(end(n) for n in range(60)))
    assert 25 <= len(taken) <= 45
    assert len(node.take(other, *(end(n) for n in range(20)))) < 20
    assert [type(message.event) for message in node.take(loud, Goodbye(99, 1))] == [Goodbye]
    reasons = {refused.reason for refused in node.intake.refused.values()}
    assert any("[limits] user_events_per_s" in reason for reason in reasons)


def test_a_flood_of_hellos(make_node: Callable[..., Node]) -> None:
    """So many at once, and no more: the rest is dropped, told once, and costs no lease."""
    node = make_node(events_per_s=10_000.0)
    client = node.client()
    count = int(HELLOS_AT_ONCE)
    taken = 0
    for _ in range(12):
        taken += len(node.take(client, *[hello()] * (count // 10)))
    assert count <= taken < count + 100
    assert sum(isinstance(answer, Refusal) for answer in node.heard(client)) <= 5


def test_a_flood_without_a_lease(make_node: Callable[..., Node]) -> None:
    """Garbage is answered so often and decoded so often; what is beyond is counted."""
    node = make_node()
    client = node.client()
    count = int(STRANGERS_AT_ONCE) + 2000
    for _ in range(count // 200):
        node.take(client, *[b"\xc1"] * 200)
    answers = node.heard(client)
    assert 0 < len(answers) < 1000
    counted = node.intake.refusals
    assert counted["malformed"] + counted["too_many_events"] == count
    assert counted["malformed"] >= STRANGERS_AT_ONCE
    assert counted["too_many_events"] > 0


def test_who_is_not_allowed_is_told_why(make_node: Callable[..., Node]) -> None:
    """Before anything of it is decoded; one that had a lease keeps it until it ends."""
    node = make_node()
    served, late = node.client(), node.client()
    node.take(served, hello())
    node.allowed = False
    assert node.take(late, b"\xc1 garbage") == []
    (refusal,) = node.heard(late)
    assert isinstance(refusal, Refusal)
    assert refusal.code == "not_permitted"
    assert "allow_groups" in refusal.reason
    assert len(node.take(served, end(1))) == 1
    assert [peer.client for peer in node.intake.not_allowed()] == list(node.intake._clients)


def test_limits_that_change(make_node: Callable[..., Node]) -> None:
    """Count from now on, for clients that there are, too."""
    node = make_node()
    client = node.client()
    node.take(client, hello(), *(end(n) for n in range(50)))
    node.intake.limit(Limits(node.allows, 5.0, 10, 100.0, 1))
    assert len(node.take(client, *(end(n) for n in range(50)))) < 20
    second = node.client()
    assert len(node.take(second, end(1))) == 0
    assert [type(answer) for answer in node.heard(second)] == [Introduce]
    node.take(second, hello())
    assert [type(answer) for answer in node.heard(second)] == [Refusal]
