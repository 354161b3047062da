"""A job that tells nothing but how long its iterations take: its own past is all there is."""

from __future__ import annotations

from math import log

import numpy as np

from perseusd.core.stragglers.compute import BIAS, Excess
from perseusd.core.stragglers.levels import SHORTEST_S, Levels
from perseusd.core.stragglers.past import TRUSTED, Past
from perseusd.core.stragglers.spells import Log

SUSPICIOUS = 0.045


class Series:
    def __init__(self) -> None:
        self.past = Past(1)
        self.log = Log()

    def add(self, time_s: float) -> None:
        level = np.array([log(max(time_s, SHORTEST_S))])
        self.past.add(Levels(level, 0.0, 0.0), np.ones(1))

    def judge(self, number: int) -> Excess | None:
        if self.past.healthy < TRUSTED:
            return None
        windows, mean, _ = self.past.means(self.past.reference)
        _, averaged = self.past.certainty()
        variance = self.past.common_variance * (1 / np.array(windows) + 1 / averaged)
        self.log.note(number, mean[0])
        return Excess(windows, mean, np.sqrt(variance)[:, None], mean, np.full(1, BIAS))

    def learn(self, excess: Excess | None, slow: bool) -> None:
        if slow:
            return
        if excess is not None and excess.mean[0, 0] > max(SUSPICIOUS, 3 * excess.error[0, 0]):
            return
        common = float(self.past.latest()[0][0, 0] - self.past.reference[0])
        self.past.settle(np.zeros(1), common)
