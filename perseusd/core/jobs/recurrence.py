"""What keeps a rank's order from being understood, once it is more than a beginning.

A rank's track needs the same order twice in a row, and says nothing while that has not come:
iterations that differ are usual at first. Here they are counted and compared with each other, so
that a job that will never be understood is told from a young one, and what differs is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from perseus_hooks.events import StageEnd, StageStart

from perseusd.core.events.tracking import MAX_COMPUTATIONS, Completed, Progress, RankIteration, Step

PATIENCE = 10
"""Iterations in a row that differ from the one before. Warm-ups, profilers and evaluations make a
few of them, and training equal ones between; so many, one by one, are how the job is."""

ENDLESS = 2 * MAX_COMPUTATIONS
"""Computations without a whole iteration: what is left of one that was joined in its middle, and
another one, are no longer than this."""


@dataclass
class Recurrence:
    """One rank's iterations while its order is unknown."""

    _last: RankIteration | None = None
    _differing: int = 0
    _difference: str = ""
    _spoilt: int = 0
    """What made an iteration impossible to follow, since the last whole one."""
    _spoiler: str = ""
    _computations: int = 0
    """Since the last whole iteration."""
    _open: StageStart | None = None
    _said: int | None = None
    _heard_ns: int = 0

    @property
    def trouble(self) -> str | None:
        """In words, what does not recur; None as long as only patience is asked for."""
        if self._differing >= PATIENCE:
            return f"its order does not recur: {self._difference}"
        if self._spoilt >= PATIENCE:
            return f"its order cannot be followed: {self._spoiler}"
        if self._computations > ENDLESS:
            return (
                f"its order does not recur: no iteration ended in {ENDLESS} computations; one ends "
                "where iteration= changes or, unsaid, where its first computation recurs"
            )
        return None

    def heard(
        self, event: StageStart | StageEnd, progress: Sequence[Progress], *, lost: bool
    ) -> None:
        """An event of the rank, and what its track made of it. lost: others before it are."""
        for step in progress:
            if isinstance(step, Completed):
                self._completed(step.iteration)
        if lost:
            self._open = None
            self._spoil("events of this rank were lost on the way")
        if isinstance(event, StageEnd):
            if self._open is not None and self._open.token == event.token:
                self._open = None
                self._clocked(event)
        elif event.instruction != "other":
            self._started(event)

    def _completed(self, whole: RankIteration) -> None:
        self._computations = self._spoilt = 0
        last, self._last = self._last, whole
        if last is None:
            return
        if last.order == whole.order:
            self._differing = 0
            return
        self._differing += 1
        self._difference = _difference(last, whole)

    def _clocked(self, event: StageStart | StageEnd) -> None:
        back_s = (self._heard_ns - event.time_ns) * 1e-9
        self._heard_ns = event.time_ns
        if back_s > 0:
            self._open = None
            self._spoil(f"its stamps went back by {back_s:.3g} s")

    def _started(self, event: StageStart) -> None:
        self._computations += 1
        self._clocked(event)
        before, self._open = self._open, event
        if before is not None:
            self._spoil(f"{_named(event)} started before {_named(before)} had ended")
        said, self._said = self._said, event.iteration
        if said is not None and event.iteration not in (None, said, said + 1):
            self._spoil(
                f"iteration {event.iteration} came after {said}: iterations must count by one"
            )

    def _spoil(self, why: str) -> None:
        self._spoilt += 1
        self._spoiler = why


def _difference(before: RankIteration, after: RankIteration) -> str:
    """Where two iterations of unequal orders first differ."""
    orders = (before.order, after.order)
    pairs = enumerate(zip(*orders, strict=False))
    position = next((n for n, (a, b) in pairs if a != b), min(map(len, orders)))
    was, now = (_at(order, position) for order in orders)
    return (
        f"iteration {after.number} had {now} at position {position} (from 0), where iteration "
        f"{before.number} had {was}"
    )


def _at(order: Sequence[Step], position: int) -> str:
    return _named(order[position]) if position < len(order) else "its end"


def _named(step: Step | StageStart) -> str:
    chunk = f" of chunk {step.chunk}" if step.chunk else ""
    return f"{step.instruction} of microbatch {step.microbatch}{chunk}"
