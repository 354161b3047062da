"""Where to change clocks: each rank's order cut into runs of one clock, exactly, given prices.

With a price φ(i) on every second of computation i the ranks separate, and for each rank

    min  Σ_i cost(i, c_i) + φ(i) · time(i, c_i)      with at most N clock writes

is a dynamic program over (position, writes so far, clock): budget_kernels.best_runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from perseusd.core.planner import budget_kernels as kernels
from perseusd.core.planner.instance import Instance

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


@dataclass(frozen=True)
class Guide:
    """What a relaxation, or a budget's limit, says of every computation; all (n,).

    durations, price: as in Relaxed.  weight: J/s² against leaving `durations`.
    """

    durations: Floats
    price: Floats
    weight: Floats


def cut(inst: Instance, guide: Guide, max_writes: int, write_price_j: float) -> Ints:
    """(n,) options with at most `max_writes` writes per rank that stay near the guide.

    Prices alone are indifferent between the neighbouring clocks a relaxed computation mixes; the
    squared distance from its relaxed duration decides.
    write_price_j: what one more write must save.
    """
    option, _ = best_options(
        inst,
        max_writes,
        guide.price,
        target=guide.durations,
        weight=guide.weight,
        write_price_j=write_price_j,
    )
    return option


def best_options(
    inst: Instance,
    max_writes: int,
    price: Floats,
    *,
    target: Floats | None = None,
    weight: Floats | None = None,
    write_price_j: float = 0.0,
) -> tuple[Ints, float]:
    """(n,) options of at most `max_writes` writes per rank and least priced cost; that cost.

    The priced cost is the sum of cost + price · time + weight · (time − target)² over the
    computations, and of write_price_j over the writes.
    price: (n,) J/s.  weight: (n,) J/s² against leaving the target, (n,) durations.
    """
    network, none = inst.network, np.zeros(len(inst.network))
    node = network.rank_node
    priced = np.empty((len(node), inst.kind_time.shape[1]))
    kernels.price_options(
        node,
        network.kind,
        inst.kind_time,
        inst.kind_cost,
        price,
        none if target is None else target,
        none if weight is None else weight,
        priced,
    )
    chosen, option = np.empty_like(node), np.empty_like(node)
    longest = int(np.diff(network.rank_first).max())
    room = np.empty((longest, priced.shape[1], min(max_writes, longest + 1) + 1), dtype=np.bool_)
    total = 0.0
    for first, last in pairwise(network.rank_first.tolist()):
        rank = _Rank(priced[first:last], int(inst.full[node[first]]) + 1, write_price_j, room)
        writes = min(max_writes, last - first + 1)
        if inst.problem.full_clock_at_end:
            total += rank.best(writes, rank.options - 1, chosen[first:last])
        else:
            total += rank.recurring(writes, chosen[first:last])
    option[node] = chosen
    return option, total


class _Rank:
    """One rank's order, priced: (positions, C), its first `options` columns."""

    def __init__(
        self, priced: Floats, options: int, write_price_j: float, room: NDArray[np.bool_]
    ) -> None:
        self.priced, self.options = priced, options
        self._write_price, self._room = write_price_j, room
        self._value = np.empty(0)

    def best(self, changes: int, end: int, chosen: Ints) -> float:
        """As kernels.best_runs."""
        self._value = np.empty((self.options, changes + 1))
        return kernels.best_runs(
            self.priced,
            self.options,
            changes,
            self._write_price,
            end,
            self._value,
            self._room,
            chosen,
        )

    def recurring(self, writes: int, chosen: Ints) -> float:
        """The least where an iteration may end at any clock: going back to its first is a write.

        Either first and last option differ, and one change less is left inside; or they are the
        same option, and each is tried whose best way to end there promises more than the best.
        """
        self.best(writes, kernels.ANY, chosen)
        promised = self._value[:, writes].copy()
        least = np.inf
        if writes > 0:
            least = self.best(writes - 1, kernels.ANY, chosen)
            least += self._write_price * float(chosen[0] != chosen[-1])
        trial = np.empty_like(chosen)
        while promised.min() < least:
            end = int(promised.argmin())
            promised[end] = np.inf
            found = self.best(writes, end, trial)
            if found < least:
                least = found
                chosen[:] = trial
        return least
