"""A straggler that somebody announced: another replica, which this job waits for.

An announcement is only word of mouth, and while it holds the job is slowed on purpose. So it is
checked against what can be seen: a job behind a straggler waits for it at every iteration's end.
One that does not wait holds up the others itself: after UNWAITED such iterations it runs at its
usual plan until an iteration shows whether there is a straggler. Where there is, the plan was too
slow for it and becomes tighter; where there is none, it has recovered, or never was.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

LIFETIME_S = 3600.0
"""An announcement that nobody repeats is forgotten after this."""

CAUTIONS = (0.004, 0.012, 0.03)
"""Shares of T′ by which a plan stays ahead of the straggler, so that it is never the later one; the
next where iterations do not wait."""

UNWAITED = 2
"""Iterations in a row without waiting after which we look: it is known of each only when the next
one has ended, so three are the most that are slow for nothing."""

NOTICEABLE_SHARE = 0.001
"""Of the straggler's iteration time: a wait shorter than this is none."""

SEEN_SHARE = 0.3
"""Of what the straggler was said to take longer: a wait this long, without our slowing, is it."""


class Word(Enum):
    """What an iteration says of the announcement."""

    KEPT = "kept"
    DOUBTED = "doubted"
    """Look: the usual plan, from now on."""
    SEEN = "seen"
    """It is there, and the plan for it may be tighter."""
    UNTRUE = "untrue"


@dataclass
class AnnouncedStraggler:
    """At most one per job; `factor` is None while there is none, or it has not begun.

    looking: whether we run as if there were none, to see whether there is.
    """

    factor: float | None = None
    looking: bool = False
    since_iteration: int = -1
    """When it was announced, or began as announced."""
    _coming: tuple[float, int] | None = None
    _since_ns: int | None = None
    _unwaited: int = 0
    _level: int = 0

    @property
    def said(self) -> bool:
        """Whether somebody's word of a straggler, now or to come, still stands."""
        return self.factor is not None or self._coming is not None

    @property
    def in_force(self) -> bool:
        return self.factor is not None and not self.looking

    @property
    def stretch(self) -> float:
        """How much later than the baseline's iteration time the job may end; factor must be set."""
        return (self.factor or 1.0) * (1 - CAUTIONS[self._level]) - 1

    def announce(self, factor: float | None) -> None:
        """Another replica takes `factor` times this one's full-clock iteration; None: no more."""
        self.factor, self.looking, self._coming, self._since_ns = factor, False, None, None
        self._unwaited, self._level = 0, 0

    def foretell(self, factor: float, starts_ns: int) -> None:
        """It will begin then; what is announced now holds until then."""
        self._coming = factor, starts_ns

    @property
    def coming(self) -> tuple[float, int] | None:
        """(factor, when it begins), where that is still to come."""
        return self._coming

    def begins(self, now_ns: int) -> float | None:
        """The factor of one that was foretold and begins now, once."""
        if self._coming is None or now_ns < self._coming[1]:
            return None
        factor, _ = self._coming
        self._coming = None
        return factor

    def expired(self, now_ns: int) -> bool:
        if self.factor is None:
            return False
        if self._since_ns is None:
            self._since_ns = now_ns
        return now_ns - self._since_ns > LIFETIME_S * 1e9

    def waited(self, waited_s: float, baseline_s: float, slowed: bool) -> Word:
        """One more iteration, under a plan for it (`slowed`) or without.

        waited_s: from the pipeline's end to the next iteration, beyond what that takes at baseline.
        """
        if self.factor is None:
            return Word.KEPT
        if not slowed:
            return self._look(waited_s, baseline_s)
        noticeable_s = NOTICEABLE_SHARE * self.factor * baseline_s
        self._unwaited = self._unwaited + 1 if waited_s < noticeable_s else 0
        if self._unwaited < UNWAITED or self.looking:
            return Word.KEPT
        self.looking = True
        return Word.DOUBTED

    def _look(self, waited_s: float, baseline_s: float) -> Word:
        assert self.factor is not None
        if not self.looking:
            return Word.KEPT
        if waited_s < SEEN_SHARE * (self.factor - 1) * baseline_s:
            return Word.UNTRUE
        self.looking, self._unwaited = False, 0
        self._level = min(self._level + 1, len(CAUTIONS) - 1)
        return Word.SEEN
