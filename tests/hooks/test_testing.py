"""The recorder that users' tests use."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import perseus_hooks
import pytest
from perseus_hooks import configure, stage, stage_end, stage_start
from perseus_hooks.calls import find
from perseus_hooks.events import Hello, StageEnd, StageStart
from perseus_hooks.testing import record


def test_a_recording_has_every_span() -> None:
    """Fields, threads, durations and order of the starts, and what was left open."""
    with record() as recording:
        outer = stage_start("iteration", iteration=7)
        with stage("forward", microbatch=3, chunk=1):
            pass
        thread = threading.Thread(target=lambda: stage_end(stage_start("other")), name="loader")
        thread.start()
        thread.join()
        stage_start("backward")
        stage_end(outer)
    first, second, third = recording.spans
    assert (first.instruction, first.iteration) == ("iteration", 7)
    assert (second.instruction, second.microbatch, second.chunk) == ("forward", 3, 1)
    assert (third.instruction, third.thread) == ("other", "loader")
    assert second.thread == "MainThread"
    assert first.duration_ns >= second.duration_ns >= 0
    assert [start.instruction for start in recording.open] == ["backward"]
    sequences = [e.sequence for e in recording.events if isinstance(e, (StageStart, StageEnd))]
    assert sequences == [1, 2, 3, 4, 5, 6, 7]


def test_a_recording_sees_what_configure_says() -> None:
    """The code under test may configure, close and configure again; all of it is recorded."""
    with record() as recording:
        configure(stage=2, stages=4, runtime_dir="/nonexistent")
        perseus_hooks.close()
        configure(stage=3, stages=4)
        stage_end(stage_start("forward"))
    assert [event.stage for event in recording.events if isinstance(event, Hello)] == [None, 2, 3]
    assert recording.hello.stage == 3
    assert len(recording.spans) == 1


def test_a_recording_sends_nothing_and_gives_the_daemon_back(daemon: Any, runtime_dir: str) -> None:
    """What is recorded does not reach the daemon; what comes after does, on the old connection."""
    configure(job="job", runtime_dir=runtime_dir)
    with record() as recording:
        stage_end(stage_start("forward"))
    assert [type(event) for event in daemon.receive()] == [Hello]
    stage_end(stage_start("backward"))
    start, _ = daemon.receive()
    assert (start.instruction, start.sequence) == ("backward", 1)
    assert len(recording.spans) == 1


def test_a_recording_works_where_the_hooks_are_switched_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A machine that sets PERSEUS_ENABLED=0 runs users' tests all the same."""
    monkeypatch.setenv("PERSEUS_ENABLED", "0")
    with record() as recording:
        configure(stage=1)
        stage_end(stage_start("forward"))
    assert len(recording.spans) == 1


def test_an_exception_ends_the_recording() -> None:
    """After a failure inside, the calls are no longer recorded."""
    with pytest.raises(ZeroDivisionError), record() as recording:
        raise ZeroDivisionError
    stage_end(stage_start("forward"))
    assert recording.spans == []


def test_the_readmes_example_runs() -> None:
    """What a new user copies first works as it stands."""
    readme = (Path(__file__).parents[2] / "hooks" / "README.md").read_text(encoding="utf-8")
    example = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)[0]
    assert len(example.splitlines()) <= 10
    with record() as recording:
        exec(example, {"forward": lambda microbatch: microbatch})  # noqa: S102  our own text
    assert [span.microbatch for span in recording.spans] == list(range(12))
    assert recording.hello.stage == 2


def test_what_an_adapter_finds_is_said_and_kept_beside_what_configure_tells() -> None:
    """Whichever comes first, the hello has both, and what is told wins."""
    with record() as recording:
        find(stage=1, stages=2, schedule="1F1B")
        configure(replica=0, replicas=2, stage=0)
        find(stages=4)
    hello = recording.hello
    assert (hello.stage, hello.stages, hello.schedule) == (0, 4, "1F1B")
    assert (hello.replica, hello.replicas) == (0, 2)


def test_a_framework_that_says_what_cannot_be_is_passed_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An adapter never raises for what its framework says, and what is wrong is not passed on."""
    with record() as recording:
        find(stage=7, stages=2)
        assert (recording.hello.stage, recording.hello.stages) == (7, None)
        find(rank=-5, schedule="two\nlines", replica=1)
    assert (recording.hello.rank, recording.hello.replica) == (0, 1)
    assert recording.hello.schedule is None
    assert "rank is -5" in caplog.text
