"""Small problems exactly: every assignment of options, cheapest first, until one is not late.

Where a job has few computations with few clocks, and above all odd curves, a search by small steps
may stop short of a plan that is several steps away; trying everything costs less than the search.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from perseusd.core.planner import noise
from perseusd.core.planner.instance import Instance

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

_MOST = 20_000  # assignments; about as many makespans as a search of a real job takes
_CHUNK = 256  # timed at once
_LATE = 1e-12


def cheapest(inst: Instance, write_price_j: float) -> Ints | None:
    """(n,) options of least cost that are not late, or None where there are too many to try."""
    counts = (inst.full + 1).tolist()
    total = 1
    for count in counts:
        total *= count
        if total > _MOST:
            return None
    every = np.array(np.unravel_index(np.arange(total), counts), dtype=np.intp)  # (n, total)
    written = _writes(inst, every)
    limit = inst.problem.max_writes
    allowed = np.flatnonzero(written.max(axis=0) <= (np.inf if limit is None else limit))
    node = np.arange(len(counts))[:, None]
    value = inst.cost[node, every].sum(axis=0) + write_price_j * written.sum(axis=0)
    order = allowed[np.argsort(value[allowed], kind="stable")]
    for first in range(0, len(order), _CHUNK):
        some = every[:, order[first : first + _CHUNK]]
        drawn = inst.time[node, some][:, :, None] * inst.factor[:, None, :]
        ends = inst.graph.makespan(drawn.reshape(len(counts), -1))
        times = noise.iteration_time(ends.reshape(some.shape[1], -1), inst.problem.confidence)
        on_time = times <= inst.deadline_s * (1 + _LATE)
        if on_time.any():
            return np.ascontiguousarray(some[:, int(on_time.argmax())])
    return inst.full


def _writes(inst: Instance, every: Ints) -> Ints:
    """(ranks, assignments) clock writes per iteration; see runs.writes."""
    found = []
    for nodes in inst.graph.order:
        option, full = every[nodes], inst.full[nodes[0]]
        inside = (option[1:] != option[:-1]).sum(axis=0)
        if inst.problem.full_clock_at_end:
            inside = inside + (option[0] != full) + (option[-1] != full)
        else:
            inside = inside + (option[0] != option[-1])
        found.append(inside)
    return np.array(found)
