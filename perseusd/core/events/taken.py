"""What the computations of one iteration took and at which clocks they ran, as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perseusd.core.events.clocklog import ClockLog
from perseusd.core.events.tracking import RankIteration

SEVERAL = 0
"""In place of the clock of a computation that ran at more than one."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Pieces = Sequence[tuple[float, int]]


@dataclass(frozen=True)
class Taken:
    """Arrays (n,) of computations: of each rank in its order, rank after rank.

    lowest_mhz: the lowest clock at which each ran, its only one in most cases; pieces: of those
    that ran at more than one, (seconds, clock) in order.
    """

    seconds: Floats
    clock_mhz: Ints
    lowest_mhz: Ints
    pieces: Mapping[int, Pieces]


def taken(ranks: Sequence[RankIteration], logs: Sequence[ClockLog]) -> Taken:
    """logs: of each rank's GPU. What took no time ran at the top clock."""
    seconds, clocks = [], []
    pieces: dict[int, Pieces] = {}
    place = 0
    for own, log in zip(ranks, logs, strict=True):
        starts, ends = own.stamps_ns[:, 0], own.stamps_ns[:, 1]
        at_ns, clock_mhz = log.changes(int(starts[0]), int(ends[-1]))
        before = at_ns.searchsorted(starts, side="right")
        clock = np.where(ends > starts, clock_mhz[before], log.top_mhz)
        for k in np.flatnonzero(at_ns.searchsorted(ends, side="left") > before).tolist():
            cut = [((b - a) * 1e-9, c) for a, b, c in log.pieces(int(starts[k]), int(ends[k]))]
            if any(c != clock[k] for _, c in cut):
                clock[k], pieces[place + k] = SEVERAL, cut
        seconds.append((ends - starts) * 1e-9)
        clocks.append(clock)
        place += len(starts)
    clock_mhz = np.concatenate(clocks)
    lowest_mhz = clock_mhz.copy()
    for k, own_pieces in pieces.items():
        lowest_mhz[k] = min(clock for _, clock in own_pieces)
    return Taken(np.concatenate(seconds), clock_mhz, lowest_mhz, pieces)
