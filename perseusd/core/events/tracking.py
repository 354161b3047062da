"""From a rank's stage events to whole iterations in a known order.

A rank runs the same computations in the same order every iteration. `RankTrack` first watches
("order unknown"), cutting the stream where `iteration` changes or, unsaid, where the iteration's
first computation recurs. Once the same order has been seen REPEATS times it is understood, and from
then on every start must be the next of the order; anything else is a `Disorder`, and the rank has
to be understood anew: an order that was understood before counts again as soon as one whole
iteration repeats it. An iteration in a known order ends with its last computation's end, so that
the daemon knows it before the next one starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from perseus_hooks.events import StageEnd, StageStart

REPEATS = 2
"""Equal iterations in a row after which an order counts as understood."""

ORDERS_KEPT = 4
"""Training's, and what an evaluation or two are taken for."""

MAX_COMPUTATIONS = 20_000
"""Per rank and iteration; a stream that never recurs must not fill the memory."""


class Step(NamedTuple):
    """What a rank does at one position of its order."""

    chunk: int
    instruction: str
    microbatch: int


class Span(NamedTuple):
    """One computation as it ran, in the host's monotonic nanoseconds."""

    step: Step
    start_ns: int
    end_ns: int

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.start_ns) * 1e-9


@dataclass(frozen=True)
class RankIteration:
    """One rank's whole iteration; `number` is the trainer's own where it tells one."""

    number: int
    spans: tuple[Span, ...]

    @property
    def order(self) -> tuple[Step, ...]:
        return tuple(span.step for span in self.spans)

    @cached_property
    def stamps_ns(self) -> NDArray[np.int64]:
        """(n, 2): when each began and ended, ascending."""
        _, starts, ends = zip(*self.spans, strict=True)
        return np.array([starts, ends], dtype=np.int64).T


class Started(NamedTuple):
    """The computation at `position` of iteration `number` has started."""

    number: int
    position: int
    time_ns: int


class Ended(NamedTuple):
    """The computation at `position` of iteration `number` has ended."""

    number: int
    position: int
    time_ns: int


class Completed(NamedTuple):
    """An iteration is whole."""

    iteration: RankIteration


class Disorder(NamedTuple):
    """The stream left the order that was understood; `why` tells a user what was seen."""

    why: str


Progress = Started | Ended | Completed | Disorder


@dataclass
class RankTrack:
    """Follows one rank. `order` is None until understood."""

    order: tuple[Step, ...] | None = None
    number: int = -1
    last_event_ns: int = 0
    _spans: list[Span] = field(default_factory=list)
    _open: StageStart | None = None
    _said: int | None = None
    _candidate: tuple[Step, ...] | None = None
    _before: list[tuple[Step, ...]] = field(default_factory=list)
    """The orders that were understood last."""
    _base: int = 0
    """What is added to the trainer's numbers, which start again with each epoch."""
    _repeats: int = 0
    _whole: bool = False
    """Whether the iteration being collected was seen from its start."""
    _anchor: Step | None = None
    """Where the trainer does not tell the iteration: the computation that starts one."""

    @property
    def counted(self) -> bool:
        """Whether the iteration numbers are this track's own count."""
        return self._said is None

    def restart(self) -> None:
        """Forget the order and what is being collected; the next whole iteration counts again."""
        self._disorder("")
        self._base = 0

    @property
    def position(self) -> int:
        """Computations of the present iteration that have ended."""
        return len(self._spans)

    def start(self, event: StageStart) -> list[Progress]:
        if event.instruction == "other":
            return []
        progress = self._clocked(event)
        if self._open is not None:
            progress += self._disorder(
                f"{event.instruction} of microbatch {event.microbatch} started before "
                f"{self._open.instruction} of microbatch {self._open.microbatch} had ended"
            )
        step = Step(event.chunk, event.instruction, event.microbatch)
        if self._anchor is None and _may_be_first(event):
            self._anchor = step
        if self._is_boundary(event, step):
            progress += self._counted_on(event)
            progress += self._close()
            self._begin(event)
        if self.order is not None and not self._expected(step):
            progress += self._disorder(self._surprise(step))
        self._open = event
        if self.order is not None:
            progress.append(Started(self.number, self.position, event.time_ns))
        return progress

    def end(self, event: StageEnd) -> list[Progress]:
        if self._open is None or self._open.token != event.token:
            return []
        progress = self._clocked(event)
        opened, self._open = self._open, None
        if opened is None:
            return progress
        step = Step(opened.chunk, opened.instruction, opened.microbatch)
        self._spans.append(Span(step, opened.time_ns, event.time_ns))
        if len(self._spans) > MAX_COMPUTATIONS:
            self._anchor = None  # it does not recur
            return self._disorder(f"more than {MAX_COMPUTATIONS} computations without recurrence")
        if self.order is None:
            return []
        progress.append(Ended(self.number, len(self._spans) - 1, event.time_ns))
        if len(self._spans) == len(self.order):
            progress.append(Completed(RankIteration(self.number, tuple(self._spans))))
        return progress

    def lost_events(self) -> list[Progress]:
        """Events of this rank went missing: what is being collected cannot be trusted."""
        return self._disorder("events of this rank were lost on the way")

    def _clocked(self, event: StageStart | StageEnd) -> list[Progress]:
        """Spans are taken as they are stamped, so stamps must not go backwards."""
        before_ns, self.last_event_ns = self.last_event_ns, event.time_ns
        if event.time_ns >= before_ns:
            return []
        return self._disorder(f"its stamps went back by {(before_ns - event.time_ns) * 1e-9:.3g} s")

    def _is_boundary(self, event: StageStart, step: Step) -> bool:
        if event.iteration is not None:
            return event.iteration != self._said
        if self._said is not None:
            return True
        if self.order is not None:
            return len(self._spans) == len(self.order)
        return step == self._anchor

    def _counted_on(self, event: StageStart) -> list[Progress]:
        """The trainer's numbers tell ranks' iterations apart, so they must count by one."""
        if event.iteration is None or self._said in (None, event.iteration - 1):
            return []
        assert self._said is not None
        whole = self.order is not None and len(self._spans) == len(self.order)
        if whole and event.iteration < self._said:  # another epoch
            self._base = self.number + 1 - event.iteration
            return []
        self._base = 0
        return self._disorder(
            f"iteration {event.iteration} came after {self._said}: iterations must count by one"
        )

    def _begin(self, event: StageStart) -> None:
        # The first iteration that is heard of may have been joined in its middle.
        self._whole = self._said is not None or event.iteration in (None, 0)
        self._said = event.iteration
        said = event.iteration
        self.number = said + self._base if said is not None else self.number + 1
        self._spans = []

    def _close(self) -> list[Progress]:
        """The iteration that was being collected has ended where a new one starts."""
        if not self._spans:
            return []
        if self.order is not None:
            if len(self._spans) == len(self.order):
                return []  # was completed by its last end
            return self._disorder(
                f"iteration {self.number} ended after {len(self._spans)} of "
                f"{len(self.order)} computations"
            )
        whole = RankIteration(self.number, tuple(self._spans))
        if not self._whole:
            return []
        if whole.order == self._candidate:
            self._repeats += 1
        else:
            self._candidate, self._repeats = whole.order, 1
        if self._repeats >= REPEATS or whole.order in self._before:
            self.order = whole.order
            others = [order for order in self._before if order != whole.order]
            self._before = [*others[1 - ORDERS_KEPT :], whole.order]
        return [Completed(whole)]

    def _expected(self, step: Step) -> bool:
        assert self.order is not None
        position = len(self._spans)
        return position < len(self.order) and self.order[position] == step

    def _surprise(self, step: Step) -> str:
        assert self.order is not None
        position = len(self._spans)
        want = self.order[position] if position < len(self.order) else None
        told = "the iteration's end" if want is None else f"{want.instruction} {want.microbatch}"
        return (
            f"{step.instruction} {step.microbatch} came at position {position} of iteration "
            f"{self.number}, where {told} was expected"
        )

    def _disorder(self, why: str) -> list[Progress]:
        known = self.order is not None
        self.order, self._candidate, self._repeats = None, None, 0
        self._open, self._whole = None, False
        self._spans = []
        return [Disorder(why)] if known else []


def _may_be_first(event: StageStart) -> bool:
    """Whether an iteration may start here: a process's first event, or microbatch 0's forward."""
    if event.sequence == 1:
        return True
    return event.instruction in ("forward", "iteration") and event.microbatch == event.chunk == 0


def aligned_numbers(latest: Sequence[tuple[int, int]], iteration_ns: float) -> list[int]:
    """Offsets that make ranks which count their own iterations agree.

    latest: per rank, the number of an iteration in its own counting, and its start's stamp.
    Returns, per rank, what to add to its own count to get rank 0's. Iterations are synchronised
    at their end, so a rank's iteration starts within [−¼, +¾) iteration of rank 0's.
    """
    anchor, anchor_ns = latest[0]
    offsets = []
    for number, start_ns in latest:
        behind = int(((start_ns - anchor_ns) / iteration_ns + 0.25) // 1)
        offsets.append(anchor + behind - number)
    return offsets
