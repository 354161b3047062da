"""Which news of stragglers the log has: onset, end, and now and then a clear change.

What is decided follows every change at once; a line for each would fill the log.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from perseusd.core.stragglers import Straggler

CLEAR: Final = 1.25
"""A factor that is so many times the one in the log, or that one so many times it, has changed."""

EVERY_S: Final = 10.0
"""At most so often a change is logged, of each straggler."""

Who = tuple[str, int | None, int | None, int | None, bool]


@dataclass
class StragglerLog:
    """clock: seconds that pass."""

    clock: Callable[[], float] = time.monotonic
    _logged: dict[Who, tuple[int, float, float]] = field(default_factory=dict)
    """Of those that last, since which iteration, the factor in the log, and when it was written."""

    def wants(self, job: str, straggler: Straggler) -> bool:
        """Whether this is worth a line, which is then taken for written."""
        who, now_s = _who(job, straggler), self.clock()
        if straggler.until_iteration is not None:
            self._logged.pop(who, None)
            return True
        since, factor, logged_s = self._logged.get(who, (None, 0.0, 0.0))
        soon = now_s - logged_s < EVERY_S
        if since == straggler.since_iteration and (soon or not _changed(factor, straggler.factor)):
            return False
        self._logged[who] = straggler.since_iteration, straggler.factor, now_s
        return True

    def forget(self, job: str) -> None:
        """It has ended, and with it whoever was slow in it."""
        for who in [who for who in self._logged if who[0] == job]:
            del self._logged[who]


def _who(job: str, straggler: Straggler) -> Who:
    link = straggler.cause == "communication"  # a slow link goes by its lower rank's name
    place = straggler.replica, straggler.stage, straggler.rank
    return job, *place, link


def _changed(logged: float, factor: float) -> bool:
    return max(logged, factor) >= CLEAR * min(logged, factor)
