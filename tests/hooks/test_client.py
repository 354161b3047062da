"""The calls against a real socket: what arrives, what is dropped, and what the user is told."""

from __future__ import annotations

import enum
import logging
import os
import socket
import threading
import time
from dataclasses import replace
from typing import Any

import perseus_hooks
import pytest
from perseus_hooks import Client, channel, configure, events, log, stage, stage_end, stage_start
from perseus_hooks.events import Goodbye, Hello, Introduce, Refusal, StageEnd, StageStart, Welcome
from perseus_hooks.identity import Arguments, identify
from perseus_hooks.spans import MAX_DEPTH

# ZMTP 3.0: a good greeting and handshake, then a message of 2^62 bytes
FOREIGN = (
    b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
    + b"\x04\x1c\x05READY\x0bSocket-Type" + (6).to_bytes(4, "big") + b"ROUTER"
    + b"\x02" + (2**62).to_bytes(8, "big")
)  # fmt: skip


def span(microbatch: int = 0) -> None:
    stage_start("forward", microbatch=microbatch)
    stage_end()


def kinds(received: list[events.Event]) -> list[str]:
    return [type(event).__name__ for event in received]


def test_hello_comes_first_and_spans_follow(daemon: Any, runtime_dir: str) -> None:
    """One span gives hello, start and end, in order, with the fields that were passed."""
    before_ns = time.monotonic_ns()
    configure(stage=1, stages=4, job="job", rank=1, runtime_dir=runtime_dir)
    token = stage_start("backward", microbatch=3, chunk=1, stage=2, iteration=7)
    stage_end()
    perseus_hooks.close()
    hello, start, end, goodbye = daemon.receive()
    assert isinstance(hello, Hello)
    assert (hello.job, hello.rank, hello.stage, hello.stages) == ("job", 1, 1, 4)
    assert start == StageStart(1, start.time_ns, token, "backward", 3, 1, 2, 7)
    assert end == StageEnd(2, end.time_ns, token)
    assert goodbye == Goodbye(3, goodbye.time_ns)
    assert before_ns <= start.time_ns <= end.time_ns <= goodbye.time_ns <= time.monotonic_ns()


def test_without_configure_the_environment_is_enough(
    daemon: Any, runtime_dir: str, monkeypatch: pytest.MonkeyPatch, until: Any
) -> None:
    """The first call introduces this process from its variables alone."""
    monkeypatch.setenv("PERSEUS_RUNTIME_DIR", runtime_dir)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    until(lambda: span() or daemon.receive(0.01))
    assert isinstance(daemon.events[0], Hello)
    assert (daemon.events[0].rank, daemon.events[0].world_size) == (2, 4)


def test_configure_again_introduces_again(daemon: Any, runtime_dir: str) -> None:
    """New data replaces the old, on the same connection and without a goodbye."""
    configure(stage=0, runtime_dir=runtime_dir)
    span()
    configure(stage=1, stages=2, runtime_dir=runtime_dir)
    span()
    received = daemon.receive()
    assert kinds(received) == ["Hello", "StageStart", "StageEnd"] * 2
    assert [event.stage for event in received if isinstance(event, Hello)] == [0, 1]
    assert [event.sequence for event in received if not isinstance(event, Hello)] == [1, 2, 3, 4]


def test_a_daemon_that_comes_later_is_found(
    runtime_dir: str, until: Any, daemon_class: Any
) -> None:
    """Without a daemon nothing is kept; one that starts later gets hello, then fresh events."""
    configure(job="early", runtime_dir=runtime_dir)
    for _ in range(1000):
        span()
    daemon = daemon_class(runtime_dir)
    try:
        until(lambda: span() or daemon.receive(0.01))
        assert isinstance(daemon.events[0], Hello)
        assert isinstance(daemon.events[1], StageStart)
        assert daemon.events[1].sequence > 2000
    finally:
        daemon.stop()


def noticed() -> bool:
    """Whether this process's channel has found out that the daemon is gone."""
    client = perseus_hooks.calls._process.client
    return client is not None and not client._host._introduced  # type: ignore[attr-defined]


def test_a_daemon_that_restarts_is_introduced_to_again(
    runtime_dir: str, until: Any, daemon_class: Any
) -> None:
    """A new daemon on the same path hears hello first, and of the gap in the sequence."""
    configure(job="job", runtime_dir=runtime_dir)
    first = daemon_class(runtime_dir)
    until(lambda: span() or first.receive(0.01))
    first.stop()
    for _ in range(20):
        span()
    until(lambda: span() or noticed())  # libzmq's thread sees it in its own time
    second = daemon_class(runtime_dir)
    try:
        until(lambda: span() or second.receive(0.01))
        assert isinstance(second.events[0], Hello)
        assert second.events[1].sequence > first.events[-1].sequence + 40
    finally:
        second.stop()


def test_introduce_makes_it_say_hello_again(daemon: Any, runtime_dir: str, until: Any) -> None:
    """A daemon that lost its memory, but not the connection, asks and is answered."""
    configure(job="job", runtime_dir=runtime_dir)
    span()
    assert kinds(daemon.receive())[0] == "Hello"
    daemon.send(Introduce())
    until(lambda: span() or "Hello" in kinds(daemon.receive(0.01)))


def test_a_refusal_is_logged_once_with_its_reason(
    daemon: Any, runtime_dir: str, until: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """However often the daemon says it, the user reads each reason once."""
    configure(job="job", runtime_dir=runtime_dir)
    span()
    daemon.receive()
    for _ in range(5):
        daemon.send(Refusal("not_permitted", "GPU-1 belongs to another job"))
        daemon.send(Refusal("gpu", "GPU-9 does not exist"))
    daemon.send(Introduce())  # read after them: when its answer comes, they have been seen
    until(lambda: span() or "Hello" in kinds(daemon.receive(0.01)))
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 2
    assert "not_permitted" in texts[0]
    assert "GPU-1 belongs to another job" in texts[0]
    assert all(record.levelno == logging.WARNING for record in caplog.records)


def test_foreign_and_malformed_answers_are_ignored(
    daemon: Any, runtime_dir: str, until: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """What a broken or later daemon sends disturbs nothing, and what follows is still read."""
    configure(job="job", runtime_dir=runtime_dir)
    span()
    daemon.receive()
    for data in (b"", b"\xc1", b"\x91\xa1?", b"x" * 5000):
        daemon.send_bytes(data)
    daemon.send(Welcome(1, 7))
    daemon.send(Introduce())
    until(lambda: span() or "Hello" in kinds(daemon.receive(0.01)))
    assert not caplog.records


def test_a_foreign_server_on_the_socket_is_outlived(
    runtime_dir: str, until: Any, daemon_class: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libzmq gives up over a broken message; a real daemon is found all the same."""
    monkeypatch.setattr(channel, "RENEW_NS", 100_000_000)
    monkeypatch.setattr(perseus_hooks.calls, "CONNECT_MS", 20)
    path = os.path.join(runtime_dir, "hooks.sock")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        configure(job="job", runtime_dir=runtime_dir)
        foreign, _ = server.accept()
        with foreign:
            foreign.sendall(FOREIGN)
            for _ in range(10):
                span()
                time.sleep(0.02)
    os.unlink(path)
    daemon = daemon_class(runtime_dir)
    try:
        until(lambda: span() or daemon.receive(0.01))
    finally:
        daemon.stop()


def test_wrong_instructions_and_numbers_become_other_and_are_logged_once(
    daemon: Any, runtime_dir: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No value that a user passes raises or reaches the wire; a wrong place is never claimed."""
    configure(job="job", runtime_dir=runtime_dir)
    wrong: list[Any] = ["sideways", None, 7, ["forward"], "x" * 10_000]
    for instruction in wrong:
        stage_end(stage_start(instruction, microbatch=5))
    for number in ("x", -1, 2**40, 1.5, [], float("nan")):
        stage_end(stage_start("forward", microbatch=number))  # type: ignore[arg-type]
        stage_end(stage_start("forward", iteration=number if number != 2**40 else -2))  # type: ignore[arg-type]
    received = daemon.receive()
    starts = [event for event in received if isinstance(event, StageStart)]
    assert len(starts) == len(wrong) + 12
    assert {(event.instruction, event.microbatch) for event in starts} == {("other", 0)}
    assert len([event for event in received if isinstance(event, StageEnd)]) == len(starts)
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 2
    assert "sideways" in texts[0]
    assert "weight_gradient" in texts[0]


def test_starts_and_ends_that_do_not_match_are_logged_once(
    daemon: Any, runtime_dir: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Of such a loop no iteration is ever understood, and only its own log can say why."""
    configure(job="job", runtime_dir=runtime_dir)
    for _ in range(3):
        stage_end()
    assert len(caplog.records) == 1
    assert "call stage_start before each" in caplog.text
    for _ in range(2 * MAX_DEPTH):
        stage_start("forward")
    assert len(caplog.records) == 2
    assert "call stage_end after each stage_start" in caplog.text
    late = stage_start("backward")
    stage_end(late)
    stage_end(late)
    assert len(caplog.records) == 2, "a token that has ended is no fault"


def test_enums_and_whole_numbers_of_other_types_are_taken(daemon: Any, runtime_dir: str) -> None:
    """A framework's own instruction names and integers count as what they are."""

    class Action(str, enum.Enum):  # noqa: UP042  what Python 3.9 has
        FORWARD = "forward"

    class Index:
        def __index__(self) -> int:
            return 4

    configure(job="job", runtime_dir=runtime_dir)
    stage_start(Action.FORWARD, microbatch=Index())  # type: ignore[arg-type]
    start = daemon.receive()[1]
    assert (start.instruction, start.microbatch) == ("forward", 4)


def test_spans_nest_and_end_in_any_order(daemon: Any, runtime_dir: str) -> None:
    """stage_end ends the innermost, or the one named; an end too many says nothing."""
    configure(job="job", runtime_dir=runtime_dir)
    outer = stage_start("iteration")
    inner = stage_start("forward")
    innermost = stage_start("other")
    stage_end(inner)
    stage_end(inner)
    stage_end()
    stage_end()
    stage_end()
    stage_end(outer)
    stage_end(0)
    stage_end("nonsense")  # type: ignore[arg-type]
    ended = [event.token for event in daemon.receive() if isinstance(event, StageEnd)]
    assert ended == [inner, innermost, outer]


def test_an_exception_passes_through_and_ends_the_span(daemon: Any, runtime_dir: str) -> None:
    """The context manager hides nothing from the trainer."""
    configure(job="job", runtime_dir=runtime_dir)
    with pytest.raises(ZeroDivisionError), stage("forward", microbatch=2):
        raise ZeroDivisionError
    received = daemon.receive()
    assert kinds(received) == ["Hello", "StageStart", "StageEnd"]
    assert received[1].token == received[2].token


def test_threads_have_spans_of_their_own(daemon: Any, runtime_dir: str) -> None:
    """Eight threads at once: every span ends with its own token, and no number comes twice."""
    configure(job="job", runtime_dir=runtime_dir)
    barrier = threading.Barrier(8)
    tokens: dict[int, list[int]] = {}

    def work(number: int) -> None:
        barrier.wait()
        mine = tokens[number] = []
        for microbatch in range(10):
            mine.append(stage_start("forward", microbatch=microbatch, chunk=number))
            time.sleep(0.002)
            stage_end()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    received = [event for event in daemon.receive() if not isinstance(event, Hello)]
    sequences = [event.sequence for event in received]
    assert sequences == sorted(set(sequences))
    starts = {event.token: event for event in received if isinstance(event, StageStart)}
    assert len(starts) > 40  # an event that does not get the lock in time is dropped
    for number, mine in tokens.items():
        assert len(set(mine)) == 10
        assert all(starts[token].chunk == number for token in mine if token in starts)
    ended = [event.token for event in received if isinstance(event, StageEnd)]
    assert len(ended) == len(set(ended))


def test_a_span_may_end_in_another_thread(daemon: Any, runtime_dir: str) -> None:
    """A token carries across threads, and the starting thread's stack forgets it."""
    configure(job="job", runtime_dir=runtime_dir)
    outer = stage_start("iteration")
    token = stage_start("backward")
    thread = threading.Thread(target=stage_end, args=(token,))
    thread.start()
    thread.join()
    stage_end()
    ended = [event.token for event in daemon.receive() if isinstance(event, StageEnd)]
    assert ended == [token, outer]


def test_a_held_lock_drops_the_event_and_counts_it(daemon: Any, runtime_dir: str) -> None:
    """A thread stuck in a call costs others their event, seen in the sequence, never a wait."""
    hello = identify(Arguments(job="job"), {}, pytest.fail)
    client = Client(hello, runtime_dir, wait_ms=5000)
    client.stage_start("forward")
    outlet: Any = client._outlet
    outlet._lock.acquire()
    client.stage_end()
    client.stage_start("backward")
    outlet._lock.release()
    client.stage_end()
    client.close()
    sequences = [event.sequence for event in daemon.receive() if not isinstance(event, Hello)]
    assert sequences == [1, 4, 5]


def test_a_hello_that_finds_the_lock_held_is_said_later(daemon: Any, runtime_dir: str) -> None:
    """Who this process is must not be forgotten because another thread was sending."""
    hello = identify(Arguments(job="job"), {}, complain=lambda message: None)
    client = Client(hello, runtime_dir)
    outlet = client._host
    assert isinstance(outlet, channel.Channel)
    with outlet._lock:
        client.introduce(replace(hello, stage=3, stages=4))
    client.stage_end(client.stage_start("forward"))
    client.close()
    assert [e.stage for e in daemon.receive() if isinstance(e, Hello)] == [None, 3]


def test_a_log_handler_may_use_the_hooks(daemon: Any, runtime_dir: str, until: Any) -> None:
    """A handler that calls the hooks, or raises, neither deadlocks nor stops the trainer."""
    seen: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            span()
            seen.append(record.getMessage())
            raise RuntimeError("a handler's own fault")

    handler = Handler()
    log.logger.addHandler(handler)
    try:
        configure(job="job", runtime_dir=runtime_dir)
        stage_end(stage_start("sideways"))
        assert len(seen) == 1
        daemon.receive()
        daemon.send(Refusal("code", "reason"))
        until(lambda: span() or len(seen) == 2)
    finally:
        log.logger.removeHandler(handler)


def test_a_filter_that_raises_stops_no_training(
    runtime_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong variable is complained of in the first call, which never raises."""
    monkeypatch.setenv("PERSEUS_RUNTIME_DIR", runtime_dir)
    monkeypatch.setenv("PERSEUS_STAGE", "third")
    seen: list[str] = []

    def filtered(record: logging.LogRecord) -> bool:
        seen.append(record.getMessage())
        raise RuntimeError("a filter's own fault")

    log.logger.addFilter(filtered)
    try:
        assert stage_start("forward")
        perseus_hooks.calls.find(rank=-1)
    finally:
        log.logger.removeFilter(filtered)
    assert len(seen) >= 2


def test_a_later_client_never_ends_an_earlier_ones_span(daemon: Any, runtime_dir: str) -> None:
    """A token is of one span of this process, whichever client there was meanwhile."""
    configure(job="job", runtime_dir=runtime_dir)
    early = stage_start("forward")
    perseus_hooks.close()
    configure(job="job", runtime_dir=runtime_dir)
    late = stage_start("forward")
    stage_end(early)
    stage_end(late)
    ended = [event.token for event in daemon.receive() if isinstance(event, StageEnd)]
    assert ended == [late]


def test_cuda_that_comes_up_later_is_said(
    daemon: Any, runtime_dir: str, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trainer configures before it touches the GPU; the daemon hears of it all the same."""
    configure(job="job", runtime_dir=runtime_dir)
    span()
    assert not daemon.receive()[0].uses_cuda
    monkeypatch.setattr(channel, "uses_cuda", lambda: True)
    until(
        lambda: span() or [e for e in daemon.receive(0.01) if isinstance(e, Hello) and e.uses_cuda]
    )


def test_switched_off_nothing_is_sent(
    daemon: Any, runtime_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By argument or by variable; an explicit argument wins over the variable."""
    monkeypatch.setenv("PERSEUS_RUNTIME_DIR", runtime_dir)
    monkeypatch.setenv("PERSEUS_ENABLED", "0")
    span()
    configure(job="job")
    span()
    assert daemon.receive() == []
    configure(job="job", enabled=True)
    span()
    configure(job="job", enabled=False)
    span()
    assert kinds(daemon.receive()) == ["Hello", "StageStart", "StageEnd", "Goodbye"]


def test_closed_is_silent_until_configured(daemon: Any, runtime_dir: str) -> None:
    """close() may come twice or first, and configure() starts anew."""
    perseus_hooks.close()
    configure(job="job", runtime_dir=runtime_dir)
    perseus_hooks.close()
    perseus_hooks.close()
    span()
    assert kinds(daemon.receive()) == ["Hello", "Goodbye"]
    configure(job="job", runtime_dir=runtime_dir)
    span()
    assert kinds(daemon.receive()) == ["Hello", "StageStart", "StageEnd"]


def test_places_without_a_socket_are_silent(
    runtime_dir: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No folder, a path too long, a plain file, a path that is none: no error, no log, no queue."""
    monkeypatch.setattr(perseus_hooks.calls, "CONNECT_MS", 20)
    plain = os.path.join(runtime_dir, "plain")
    os.mkdir(plain)
    with open(os.path.join(plain, "hooks.sock"), "w"):
        pass
    for folder in ("/nonexistent", runtime_dir, "/tmp/" + "x" * 200, plain, "\0", "rel"):  # noqa: S108
        configure(job="job", runtime_dir=folder)
        for _ in range(10):
            span()
        perseus_hooks.close()
    assert not caplog.records


@pytest.mark.parametrize(
    ("told", "named"),
    [
        ({"runtime_dir": 7}, "runtime_dir is 7"),
        ({"enabled": "no"}, "enabled is 'no'"),
        ({"stage": "x"}, "stage is 'x'"),
    ],
)
def test_configure_raises_for_wrong_arguments(told: dict[str, Any], named: str) -> None:
    """The message names the argument, its value and what to pass, and nothing is changed."""
    with pytest.raises(ValueError, match=named):
        configure(**told)
    assert perseus_hooks.calls._process.client is None


def test_several_clients_speak_for_several_ranks(daemon: Any, runtime_dir: str) -> None:
    """One process may hold a client per rank; each has an identity of its own."""
    for rank in (0, 1):
        hello = identify(Arguments(job="job", rank=rank), {}, pytest.fail)
        client = Client(hello, runtime_dir, wait_ms=5000)
        with client.stage("forward", microbatch=rank):
            pass
        client.close()
    received = daemon.receive()
    assert sorted(e.rank for e in received if isinstance(e, Hello)) == [0, 1]
    assert len([e for e in received if isinstance(e, StageEnd)]) == 2


def test_a_span_that_is_over_is_reported_with_its_own_stamps(daemon: Any, runtime_dir: str) -> None:
    """Start and end follow each other, wrong fields become `other`, no thread's stack sees it."""
    configure(job="job", runtime_dir=runtime_dir)
    open_ = stage_start("forward")
    now_ns = time.monotonic_ns()
    perseus_hooks.calls.report(now_ns - 2, now_ns - 1, "backward", microbatch=3, iteration=7)
    perseus_hooks.calls.report(now_ns - 1, now_ns, "sideways")
    stage_end()
    _, _, start, end, other, other_end, last = daemon.receive()
    assert start == StageStart(2, now_ns - 2, start.token, "backward", 3, 0, None, 7)
    assert end == StageEnd(3, now_ns - 1, start.token)
    assert (other.instruction, other_end.token) == ("other", other.token)
    assert last.token == open_


def test_speaks_says_whether_anybody_would_be_told(daemon: Any, runtime_dir: str) -> None:
    """An adapter that has to work for its spans does none without a daemon, nor when it is off."""
    assert not perseus_hooks.calls.speaks()
    configure(job="job", runtime_dir=runtime_dir)
    assert perseus_hooks.calls.speaks()
    span()
    assert [event.sequence for event in daemon.receive()[1:]] == [1, 2]
    perseus_hooks.close()
    assert not perseus_hooks.calls.speaks()


def test_who_asks_is_told_that_no_daemon_is_there(
    runtime_dir: str, caplog: pytest.LogCaptureFixture
) -> None:
    """At INFO, with the path: a warning on each of a thousand ranks would be too much."""
    with caplog.at_level("INFO", "perseus_hooks"):
        perseus_hooks.configure(runtime_dir=runtime_dir)
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert f"{runtime_dir}/hooks.sock" in record.getMessage()
