"""Where to change clocks: each rank's order cut into runs of one clock, exactly, given prices.

With a price φ(i) on every second of computation i the ranks separate, and for each rank

    min  Σ_i cost(i, c_i) + φ(i) · time(i, c_i)      with at most N clock writes

is a dynamic program over (position, writes so far, clock).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perseusd.core.planner.instance import Instance

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


@dataclass(frozen=True)
class Cut:
    """One rank's best options with at most `writes` writes. option: (positions,)."""

    writes: int
    value: float
    option: Ints


def best_cuts(priced: Floats, max_writes: int, *, full_clock_at_end: bool) -> list[Cut]:
    """For each number of writes that pays, the best options; more writes always a lower value.

    priced: (positions, C) cost of each position at each option; the last option is full clock.
    """
    count = priced.shape[1]
    firsts = np.array([count - 1]) if full_clock_at_end else np.arange(count)
    value, stayed, came = _sweep(priced, max_writes, firsts, free_start=not full_clock_at_end)
    closing = np.full_like(value, np.inf)
    closing[:, 1:, :] = value[:, :-1, :]
    each = np.arange(len(firsts))
    closing[each, :, firsts] = value[each, :, firsts]
    cuts: list[Cut] = []
    for writes in range(max_writes + 1):
        first, last = np.unravel_index(np.argmin(closing[:, writes]), closing[:, writes].shape)
        best = float(closing[first, writes, last])
        if not np.isfinite(best) or (cuts and best >= cuts[-1].value):
            continue
        left = writes - int(last != firsts[first])
        cuts.append(Cut(writes, best, _trace(stayed, came, int(first), left, int(last))))
    return cuts


def _sweep(
    priced: Floats, max_writes: int, firsts: Ints, *, free_start: bool
) -> tuple[Floats, list[NDArray[np.bool_]], list[Ints]]:
    """value: (F, N + 1, C) after the last position, by first option, writes so far, option.

    stayed, came: per position after the first, whether (F, N + 1, C) kept its option, and (F,
        N + 1) the option it came from otherwise.
    """
    count = priced.shape[1]
    each = np.arange(len(firsts))
    value = np.full((len(firsts), max_writes + 1, count), np.inf)
    if not free_start and max_writes > 0:
        value[:, 1, :] = priced[0]
    if not free_start:
        value[:, 1:, firsts] = np.inf
    value[each, 0, firsts] = priced[0, firsts]
    stayed: list[NDArray[np.bool_]] = []
    came: list[Ints] = []
    for row in priced[1:]:
        source = value.argmin(axis=2)
        changed = np.full((len(firsts), max_writes + 1, 1), np.inf)
        changed[:, 1:, 0] = np.take_along_axis(value, source[:, :, None], 2)[:, :-1, 0]
        stay = value <= changed
        value = np.where(stay, value, changed) + row
        stayed.append(stay)
        came.append(source)
    return value, stayed, came


def _trace(
    stayed: list[NDArray[np.bool_]], came: list[Ints], first: int, writes: int, option: int
) -> Ints:
    path = [option]
    for stay, source in zip(reversed(stayed), reversed(came), strict=True):
        if not stay[first, writes, option]:
            writes -= 1
            option = int(source[first, writes])
        path.append(option)
    return np.array(path[::-1], dtype=np.intp)


@dataclass(frozen=True)
class Guide:
    """What the relaxation says of every computation; all (n,).

    durations, price: as in Relaxed.  weight: J/s² against leaving `durations`.
    """

    durations: Floats
    price: Floats
    weight: Floats

    def blended(self, durations: Floats, price: Floats) -> Guide:
        """Half way to another relaxation's answer: the one for the cut this guide led to."""
        return Guide((self.durations + durations) / 2, (self.price + price) / 2, self.weight)


def cut(inst: Instance, guide: Guide, max_writes: int, write_price_j: float) -> Ints:
    """(n,) options with at most `max_writes` writes per rank that stay near the guide.

    Prices alone are indifferent between the neighbouring clocks a relaxed computation mixes; the
    squared distance from its relaxed duration decides.
    write_price_j: what one more write must save.
    """
    priced = inst.cost + guide.price[:, None] * inst.time
    priced += guide.weight[:, None] * (inst.time - guide.durations[:, None]) ** 2
    option = np.empty(len(inst.graph), dtype=np.intp)
    for nodes in inst.graph.order:
        usable = int(inst.full[nodes[0]]) + 1
        found = best_cuts(
            priced[nodes, :usable],
            min(max_writes, len(nodes) + 1),
            full_clock_at_end=inst.problem.full_clock_at_end,
        )
        option[nodes] = min(found, key=lambda c: c.value + write_price_j * c.writes).option
    return option
