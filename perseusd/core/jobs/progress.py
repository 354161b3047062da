"""How much is known of a pipeline's curves: what people are told of learning."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from perseusd.core.jobs.understanding import Understanding
from perseusd.core.model import Kind

MOST_NAMED = 8
"""Kinds that are told as the least known."""


class Doubt(NamedTuple):
    """Relative standard errors of one kind's curve at the lowest clock that it covers."""

    kind: Kind
    time: float
    energy: float


class Progress(NamedTuple):
    """trials: iterations in which lower clocks were tried. lowest_mhz: of them, over all kinds.

    doubts: of the least known kinds, worst first; empty while there is no curve.
    """

    trials: int
    lowest_mhz: int | None
    doubts: tuple[Doubt, ...]


def progress_of(known: Understanding) -> Progress:
    seen = known.knowledge.durations.seen
    tried = [
        clock
        for kind, clocks in seen.items()
        for clock, samples in clocks.items()
        if samples and clock < known.gpus[kind.rank].top_mhz
    ]
    doubts = sorted(_doubts(known), key=lambda doubt: -max(doubt.time, doubt.energy))
    trials = known.explorer.iterations
    return Progress(trials, min(tried, default=None), tuple(doubts[:MOST_NAMED]))


def _doubts(known: Understanding) -> list[Doubt]:
    """Errors grow towards lower clocks, so one point of each curve will do."""
    times, powers = known.knowledge.last_fits
    if times is None or powers is None:
        return []
    found = []
    for kind in known.graph.kinds:
        if kind in times.top_s and powers.knows(kind):
            lowest = np.array([times.reach(kind)])
            time = float(times.error(kind, lowest)[0])
            power = float(powers.error(kind, lowest)[0])
            found.append(Doubt(kind, time, float(np.hypot(time, power))))
    return found
