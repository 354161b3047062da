"""Which link is slow: lags that have grown, told as what they add to an iteration.

A link is a pair of ranks, both directions together: so clocks that differ between the hosts of the
two ranks cancel out. Each microbatch pays the lag once per direction, so an iteration that nothing
hides grows by their sum over its microbatches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from perseusd.core.stragglers.compute import BIAS, Excess
from perseusd.core.stragglers.levels import Array, Levels
from perseusd.core.stragglers.past import SEEDS, TRUSTED, Past
from perseusd.core.stragglers.peers import ENOUGH, common_to_all, shared_reference
from perseusd.core.stragglers.spells import Log

Link = tuple[int, int]
"""The lower rank and the higher."""

SUSPICIOUS = 0.045

SETTLING = 1 / 50
"""Share of an iteration's time that the reference time takes over."""


def added_seconds(
    lags: Mapping[tuple[int, int, str], float], crossings: Mapping[tuple[int, str], int]
) -> dict[Link, float]:
    """Seconds per iteration that each link's lags add up to.

    crossings: (rank, instruction) → how many such computations an iteration has.
    """
    total: dict[Link, float] = defaultdict(float)
    for (before, after, instruction), lag in lags.items():
        link = (min(before, after), max(before, after))
        total[link] += lag * crossings.get((after, instruction), 1)
    return total


class Links:
    """One replica's links. slow: per link, whether a spell lasts there (the watch keeps it)."""

    def __init__(self) -> None:
        self.links: tuple[Link, ...] = ()
        self.past = Past(0, shared=False)
        self.last: Excess | None = None
        self.slow: NDArray[np.bool_] = np.zeros(0, dtype=bool)
        self.valid: Array = np.zeros(0)
        self.log = Log()
        self._seconds: Array = np.zeros(0)
        self._iteration_s = 0.0
        self._times: list[float] = []

    def add(self, seconds: Mapping[Link, float], iteration_s: float) -> bool:
        """Takes an iteration in; whether its links are those known.

        A link that is not seen keeps its value and is not judged.
        """
        same = set(seconds) <= set(self.links)
        if not same:
            self.links = tuple(sorted({*self.links, *seconds}))
            self.past, self.last = Past(len(self.links), shared=False), None
            self.slow = np.zeros(len(self.links), dtype=bool)
            self.log = Log()
            self._seconds = np.zeros(len(self.links))
        self._time(iteration_s)
        self.valid = np.array([float(link in seconds) for link in self.links])
        told = np.array([seconds.get(link, 0.0) for link in self.links])
        self._seconds = np.where(self.valid > 0, told, self._seconds)
        self.past.add(Levels(self._seconds / self._iteration_s, 0.0, 0.0), self.valid)
        return same

    def judge(self, number: int, others: Sequence[Links]) -> Excess | None:
        """The excesses now, shape (windows, links); None while there is nothing to judge by."""
        peers = [o for o in others if o.links == self.links]
        if self.past.healthy < (1 if len(peers) + 1 >= ENOUGH else TRUSTED):
            return None
        reference = shared_reference(self.past.reference, [p.past.reference for p in peers])
        windows, grown, count = self.past.means(reference)
        raw = np.log1p(np.maximum(grown, -0.5))
        averaged, _ = self.past.certainty()
        variance = self.past.variance / np.maximum(count, 1.0) + self.past.variance / averaged
        known = [(p.last, p.slow) for p in peers if p.last is not None]
        shared = common_to_all(windows, known)
        taken = raw - (0.0 if shared is None else shared)
        self.last = Excess(
            windows, taken, np.sqrt(variance) / np.exp(raw), raw, np.full(len(self.links), BIAS)
        )
        self.log.note(number, np.where(self.valid > 0, taken[0], np.nan))
        return self.last

    def learn(self, excess: Excess | None) -> None:
        if not self.valid.all() or self.slow.any():
            return
        if excess is not None:
            limit = np.maximum(SUSPICIOUS, 3 * excess.error)
            if (excess.mean > limit)[:4].any():
                return
        relative = self.past.latest()[0][0] - self.past.reference
        self.past.settle(relative, 0.0)

    def _time(self, iteration_s: float) -> None:
        """The iteration's usual time: a median first, then hardly moving."""
        if len(self._times) < SEEDS:
            self._times.append(iteration_s)
            self._iteration_s = float(np.median(self._times))
        elif not self.slow.any():
            usual = min(max(iteration_s, 0.9 * self._iteration_s), 1.1 * self._iteration_s)
            self._iteration_s += SETTLING * (usual - self._iteration_s)
