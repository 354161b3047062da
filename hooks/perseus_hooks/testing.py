"""Record what the calls say, for the tests of code that uses them; no daemon, no sockets.

with record() as recording:
    train_one_iteration()
assert [span.instruction for span in recording.spans] == ["forward", "backward"]
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from perseus_hooks.calls import speaking_through
from perseus_hooks.client import Client
from perseus_hooks.events import Event, Hello, StageEnd, StageStart
from perseus_hooks.identity import Arguments, identify


@dataclass(frozen=True)
class Span:
    """One finished computation. thread: the name of the thread that started it."""

    instruction: str
    microbatch: int
    chunk: int
    stage: int | None
    iteration: int | None
    thread: str
    start_ns: int
    end_ns: int

    @property
    def duration_ns(self) -> int:
        return self.end_ns - self.start_ns


class Recording:
    """What was said, complete and in order: nothing is dropped here.

    events: every event as the daemon would have got it. hello: the latest introduction.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._threads: dict[int, str] = {}
        self._lock = threading.RLock()
        self._sequence = 0

    @property
    def hello(self) -> Hello:
        return [event for event in self.events if isinstance(event, Hello)][-1]

    @property
    def spans(self) -> list[Span]:
        """The finished spans, in the order of their starts."""
        ends = {event.token: event for event in self.events if isinstance(event, StageEnd)}
        return [
            _span(event, ends[event.token], self._threads[event.token])
            for event in self.events
            if isinstance(event, StageStart) and event.token in ends
        ]

    @property
    def open(self) -> list[StageStart]:
        """Computations that were started and never ended: usually a bug in what is tested."""
        ended = {event.token for event in self.events if isinstance(event, StageEnd)}
        starts = [event for event in self.events if isinstance(event, StageStart)]
        return [event for event in starts if event.token not in ended]

    def emit(self, kind: type[Any], time_ns: int, *fields: Any) -> None:
        with self._lock:
            self._sequence += 1
            event = kind(self._sequence, time_ns, *fields)
            self.events.append(event)
            if isinstance(event, StageStart):
                self._threads[event.token] = threading.current_thread().name

    def lose(self) -> None:
        """What cannot be told leaves a gap in the numbers, as it does for the daemon."""
        with self._lock:
            self._sequence += 1

    def hears(self, time_ns: int) -> bool:
        return True

    def introduce(self, hello: Hello, time_ns: int, wait_ms: int) -> None:
        self.events.append(hello)

    def close(self, time_ns: int, wait_ms: int | None = None) -> None:
        """A recording ends with its `with` block, not with the code that it watches."""

    def forget(self) -> None:
        """A forked child has a copy of its own, and adds nothing to the parent's."""


@contextlib.contextmanager
def record() -> Iterator[Recording]:
    """Send the calls of this process to a recording, and afterwards where they went before."""
    recording = Recording()
    hello = identify(Arguments(), os.environ, complain=lambda message: None)
    client = Client(hello, "", outlet=recording)
    try:
        with speaking_through(client):
            yield recording
    finally:
        client.close()  # with the device's times, there is a thread to end


def _span(start: StageStart, end: StageEnd, thread: str) -> Span:
    return Span(
        instruction=start.instruction,
        microbatch=start.microbatch,
        chunk=start.chunk,
        stage=start.stage,
        iteration=start.iteration,
        thread=thread,
        start_ns=start.time_ns,
        end_ns=end.time_ns,
    )
