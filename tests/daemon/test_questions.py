"""The request and answer sockets: any REQ client, and nonsense."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from perseusd.daemon.access import Caller
from perseusd.daemon.questions import BATCH, MAX_REQUEST_BYTES, Questions
from perseusd.daemon.waiting import Waiting

Ask = Callable[[bytes], Any]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "q.sock"


@pytest.fixture
def asked() -> list[tuple[int, object]]:
    return []


@pytest.fixture
def questions(path: Path, asked: list[tuple[int, object]]) -> Iterator[Questions]:
    """Answers with what it was asked."""

    def answer(caller: Caller, request: object) -> dict[str, Any]:
        asked.append((caller.uid, request))
        return {"echo": request}

    with zmq.Context() as context:
        made = Questions(context, {path: (0o660, answer)})
        yield made
        made.close()


@pytest.fixture
def ask(questions: Questions, path: Path) -> Iterator[Ask]:
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(f"ipc://{path}")

        def ask(request: bytes) -> Any:
            socket.send(request)
            for _ in range(200):
                questions.answer(questions.sockets)
                if socket.poll(10):
                    return json.loads(socket.recv())
            pytest.fail("no answer")

        yield ask


def test_answers_with_who_asked(ask: Ask, asked: list[tuple[int, object]]) -> None:
    """The uid is the kernel's, and the request arrives as it was meant."""
    assert ask(b'{"command": "status"}') == {"echo": {"command": "status"}}
    assert asked == [(os.getuid(), {"command": "status"})]


@pytest.mark.parametrize("request_", [b"", b"{", b"\xff\xfe", b"[" * 60_000, b"9" * 5000])
def test_what_is_no_json_is_said_to_be_none(ask: Ask, request_: bytes) -> None:
    """And the next question is answered."""
    answer = ask(request_)
    assert answer["code"] == "bad_request"
    assert "not JSON" in answer["error"]
    assert ask(b"1") == {"echo": 1}


def test_a_request_beyond_the_limit_is_cut_off(ask: Ask, questions: Questions, path: Path) -> None:
    """It is never read; others are answered."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(f"ipc://{path}")
        socket.send_multipart([b"", b"1" * (MAX_REQUEST_BYTES + 1)])
        for _ in range(20):
            questions.answer(questions.sockets)
            assert not socket.poll(10)
    assert ask(b"1") == {"echo": 1}


def test_what_comes_to_another_socket_meanwhile_is_answered(tmp_path: Path) -> None:
    """More than a batch, after the wait in which a question to the first socket was told."""
    with zmq.Context() as context:
        paths = tmp_path / "a", tmp_path / "b"
        desk = 0o600, lambda _who, request: {"of": request}
        made = Questions(context, dict.fromkeys(paths, desk))
        waiting = Waiting((), (*made.sockets, *(door.monitor for door in made.doors)))
        first, second = (context.socket(zmq.DEALER) for _ in paths)

        def turn(ready: set[Any]) -> None:
            for door in made.doors:
                if door.monitor in ready:
                    door.mind()
            if not ready.isdisjoint(made.sockets):
                made.answer(ready)

        for socket, path in zip((first, second), paths, strict=True):
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(f"ipc://{path}")
        time.sleep(0.1)
        for _ in range(20):
            turn(waiting.wait(0.02))
        for _ in range(3):  # a connection's first messages wake more often than they need
            second.send_multipart([b"", b"{}"])
            while not second.poll(20):
                turn(waiting.wait(0.02))
            second.recv_multipart()
        for _ in range(3):
            turn(waiting.wait(0.02))
        first.send_multipart([b"", b"{}"])
        time.sleep(0.05)
        ready = waiting.wait(0.5)
        assert ready == {made.sockets[0]}
        for _ in range(BATCH + 4):
            second.send_multipart([b"", b"{}"])
        time.sleep(0.05)
        turn(ready)
        for _ in range(50):
            turn(waiting.wait(0.02))
        answered = 0
        while second.poll(50):  # not before: to take an answer wakes who sent it
            second.recv_multipart()
            answered += 1
        assert answered == BATCH + 4
        waiting.close()
        made.close()
        first.close()
        second.close()


def test_frames_from_a_client_that_is_no_req_socket(questions: Questions, path: Path) -> None:
    """A DEALER without the empty frame gets its answer the same way; one that leaves gets none."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 200)
        socket.connect(f"ipc://{path}")
        socket.send(b"2")
        for _ in range(200):
            questions.answer(questions.sockets)
            if socket.poll(10):
                break
        assert json.loads(socket.recv()) == {"echo": 2}
        socket.send(b"3")
    for _ in range(20):
        questions.answer(questions.sockets)


def test_the_socket_has_its_mode_and_goes_when_closed(questions: Questions, path: Path) -> None:
    """So that who may ask is decided by the file system as well."""
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    questions.close()
    assert not path.exists()
