"""A straggler that somebody announced: another replica, which this job waits for.

An announcement is only word of mouth, and while it holds the job is slowed on purpose. So it is
checked against what can be seen: a job behind a straggler waits for it at every iteration's end.
One that does not wait holds up the others itself: the plan is made tighter, and when even the
tightest never waits, the straggler has recovered, or never was.
"""

from __future__ import annotations

from dataclasses import dataclass

LIFETIME_S = 3600.0
"""An announcement that nobody repeats is forgotten after this."""

CAUTIONS = (0.004, 0.012, 0.03)
"""Shares of T′ by which a plan stays ahead of the straggler, so that it is never the later one; the
next where iterations do not wait."""

UNWAITED = 5
"""Iterations in a row without waiting that call for the next caution. Noise of 0.3 % of an
iteration hides the wait of one in four, so of five in a row once in a thousand."""

NOTICEABLE_SHARE = 0.001
"""Of the straggler's iteration time: a wait shorter than this is none."""


@dataclass
class AnnouncedStraggler:
    """At most one per job; `factor` is None while there is none."""

    factor: float | None = None
    _since_ns: int | None = None
    _unwaited: int = 0
    _level: int = 0

    @property
    def believed(self) -> bool:
        """False once even the tightest plan was never waited for."""
        return self._level < len(CAUTIONS)

    @property
    def stretch(self) -> float:
        """How much later than the baseline's iteration time the job may end; factor must be set."""
        return (self.factor or 1.0) * (1 - CAUTIONS[min(self._level, len(CAUTIONS) - 1)]) - 1

    def announce(self, factor: float | None) -> None:
        """Another replica takes `factor` times this one's full-clock iteration; None: no more."""
        self.factor, self._since_ns, self._unwaited, self._level = factor, None, 0, 0

    def expired(self, now_ns: int) -> bool:
        if self.factor is None:
            return False
        if self._since_ns is None:
            self._since_ns = now_ns
        return now_ns - self._since_ns > LIFETIME_S * 1e9

    def waited(self, waited_s: float, baseline_s: float) -> bool:
        """One more iteration under its plan; True where a tighter plan is called for.

        waited_s: from the pipeline's end to the next iteration, beyond what that takes at baseline.
        """
        if self.factor is None:
            return False
        noticeable_s = NOTICEABLE_SHARE * self.factor * baseline_s
        self._unwaited = self._unwaited + 1 if waited_s < noticeable_s else 0
        if self._unwaited < UNWAITED:
            return False
        self._unwaited, self._level = 0, self._level + 1
        return True
