"""How much each user may ask of the daemon, so that nobody's flood is anybody else's loss.

What is over a limit is dropped before it is decoded, which costs a few microseconds. Each limit is
a token bucket: so much at once, refilled at so much a second.
"""

from __future__ import annotations

from dataclasses import dataclass, field

STRANGERS_PER_S, STRANGERS_AT_ONCE = 1000.0, 4000.0
"""Messages of one user's processes that have no lease yet: hellos, and events before a hello."""

HELLOS_PER_S, HELLOS_AT_ONCE = 10.0, 1000.0
"""Of one user: a hello costs a hundred times what an event does, and lines in the log."""

ANSWERS_PER_S, ANSWERS_AT_ONCE = 50.0, 500.0
"""Refusals that are sent to one user's processes; what is beyond is counted alone."""

QUESTIONS_PER_S, QUESTIONS_AT_ONCE = 200.0, 400.0
"""Of one user, on one socket: a status takes milliseconds to make."""

REFILL_S = 0.05
"""To work out for each message what has been refilled costs more than to count it."""

KEPT_USERS = 4096
"""Whose use is remembered; the one unheard for longest is forgotten, and starts afresh."""


@dataclass
class Bucket:
    """A token bucket; full at first. It is refilled when it is empty, and else every REFILL_S."""

    per_s: float
    at_once: float
    _tokens: float = field(default=-1.0)
    _filled_s: float = 0.0

    def take(self, now_s: float) -> bool:
        """One token, if there is one."""
        if self._tokens >= 1 and now_s - self._filled_s < REFILL_S:
            self._tokens -= 1
            return True
        if self._tokens < 0:
            self._tokens, self._filled_s = self.at_once, now_s
        grown = self._tokens + (now_s - self._filled_s) * self.per_s
        self._filled_s = now_s
        if grown < 1:
            self._tokens = max(0.0, grown)
            return False
        self._tokens = min(self.at_once, grown) - 1
        return True


@dataclass
class Use:
    """One user's buckets on the hooks' socket, and when it was last told of a limit, by code."""

    events: Bucket
    strangers: Bucket = field(default_factory=lambda: Bucket(STRANGERS_PER_S, STRANGERS_AT_ONCE))
    hellos: Bucket = field(default_factory=lambda: Bucket(HELLOS_PER_S, HELLOS_AT_ONCE))
    answers: Bucket = field(default_factory=lambda: Bucket(ANSWERS_PER_S, ANSWERS_AT_ONCE))


@dataclass
class Quotas:
    """Each user's use of the hooks' socket.

    events_per_s: of all processes of one user together.
    """

    events_per_s: float
    _uses: dict[int, Use] = field(default_factory=dict)

    def of(self, uid: int) -> Use:
        use = self._uses.get(uid)
        if use is None:
            if len(self._uses) >= KEPT_USERS:
                del self._uses[next(iter(self._uses))]
            use = self._uses[uid] = Use(Bucket(self.events_per_s, self.events_per_s))
        return use


@dataclass
class QuestionQuotas:
    """Each user's questions on one socket."""

    _buckets: dict[int, Bucket] = field(default_factory=dict)

    def take(self, uid: int, now_s: float) -> bool:
        bucket = self._buckets.get(uid)
        if bucket is None:
            if len(self._buckets) >= KEPT_USERS:
                del self._buckets[next(iter(self._buckets))]
            bucket = self._buckets[uid] = Bucket(QUESTIONS_PER_S, QUESTIONS_AT_ONCE)
        return bucket.take(now_s)
