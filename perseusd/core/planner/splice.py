"""Between two plans: one up to some computation, the other from there on.

Nodes are numbered in topological order, so a prefix of them is what runs first, about. An iteration
that begins with the slower plan's clocks and ends with the faster plan's takes a time between
theirs, at a cost between theirs: the chord between two real plans, at the price of a few makespans.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from perseusd.core.planner.compiled import compiled
from perseusd.core.planner.network import Network

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_LATE = 1e-12  # relative; sums in another order differ by about 1e-15


def longest_prefix(network: Network, slow: Floats, fast: Floats, deadline_s: float) -> int:
    """How many nodes may have the `slow` durations, the rest the `fast`, for all to end in time.

    slow, fast: (n,), of which `fast` is in time. By bisection: a longer prefix is late, but where
    the two plans are slow in different places there may be a longer one still that is not.
    """
    net = network
    latest = deadline_s * (1 + _LATE)
    return prefix(net.into_first, net.into_edge, net.tail, net.lag, slow, fast, latest)


@compiled("i8(i8[::1], i8[::1], i8[::1], f8[::1], f8[::1], f8[::1], f8)")
def prefix(
    into_first: Ints,
    into_edge: Ints,
    tail: Ints,
    lag: Floats,
    slow: Floats,
    fast: Floats,
    latest: float,
) -> int:
    end = np.empty(len(slow))
    low, high = 0, len(slow) + 1
    while high - low > 1:
        middle = (low + high) // 2
        last = 0.0
        for i in range(len(slow)):
            start = 0.0
            for k in range(into_first[i], into_first[i + 1]):
                e = into_edge[k]
                start = max(start, end[tail[e]] + lag[e])
            end[i] = start + (slow[i] if i < middle else fast[i])
            last = max(last, end[i])
        if last <= latest:
            low = middle
        else:
            high = middle
    return low
