"""Kernels of the clock-write budget: the best runs at given prices, and flows tilted to long paths.

Array shapes and names are those of Network and Instance: n nodes, R ranks, C options at most.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from perseusd.core.planner.compiled import compiled

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

ANY = -1  # in place of an option: whichever is best
# Of what enters a node, this share is spread evenly over its edges before a flow is tilted: an
# edge that once carried nothing may carry something again.
_EVEN = 1e-3


@compiled("f8(f8[:,::1], i8, i8, f8, i8, f8[:,::1], b1[:,:,::1], i8[::1])")
def best_runs(
    priced: Floats,
    options: int,
    changes: int,
    write_price: float,
    end: int,
    value: Floats,
    stayed: Bools,
    chosen: Ints,
) -> float:
    """The least priced cost of one rank's order with at most so many changes of option; exact.

    A dynamic program over (position, changes so far, option): either the option is kept, or it is
    any after the best of all with one change less.
    priced: (positions, C), of which the first `options` columns are meant.
    write_price: of every change.
    end: the option before and after the order, from and to which a change is a change too; or
        ANY, and it is none.
    value: (options, changes + 1) gets the values by the last position's option.
    stayed: (positions, options, changes + 1) at least, room to work in.
    chosen: (positions,) gets the options.
    """
    positions, width = len(priced), changes + 1
    came = np.empty((positions, width), np.int64)
    least = np.empty(width)
    source = np.empty(width, np.int64)
    for c in range(options):
        for w in range(width):
            if end == ANY or c == end:
                value[c, w] = priced[0, c]
            else:
                value[c, w] = priced[0, c] + write_price if w > 0 else np.inf
    for i in range(1, positions):
        least[:] = np.inf
        source[:] = 0
        for c in range(options):
            for w in range(1, width):
                if value[c, w - 1] < least[w]:
                    least[w] = value[c, w - 1]
                    source[w] = c
        for w in range(width):
            least[w] += write_price
            came[i, w] = source[w]
        for c in range(options):
            price = priced[i, c]
            for w in range(width):
                stay = value[c, w] <= least[w]
                stayed[i, c, w] = stay
                value[c, w] = (value[c, w] if stay else least[w]) + price
    best, at, w = np.inf, 0, changes
    for c in range(options):
        if end == ANY or c == end:
            closed, left = value[c, changes], changes
        elif changes > 0:
            closed, left = value[c, changes - 1] + write_price, changes - 1
        else:
            continue
        if closed < best:
            best, at, w = closed, c, left
    for i in range(positions - 1, -1, -1):
        chosen[i] = at
        if i > 0 and not stayed[i, at, w]:
            at = came[i, w]
            w -= 1
    return best


@compiled("void(i8[::1], i8[::1], f8[:,::1], f8[:,::1], f8[::1], f8[::1], f8[::1], f8[:,::1])")
def price_options(
    nodes: Ints,
    kind: Ints,
    kind_time: Floats,
    kind_cost: Floats,
    price: Floats,
    target: Floats,
    weight: Floats,
    priced: Floats,
) -> None:
    """Fill (nodes, C) with cost + price · time + weight · (time − target)²."""
    for i in range(len(nodes)):
        node = nodes[i]
        for c in range(priced.shape[1]):
            time = kind_time[kind[node], c]
            away = time - target[node]
            priced[i, c] = kind_cost[kind[node], c] + price[node] * time
            priced[i, c] += weight[node] * away * away


@compiled("f8(i8[::1], f8[::1], i8[::1], i8[::1], i8[::1], i8[::1], f8[::1], f8, f8[::1], f8[::1])")
def tilted(
    tail: Ints,
    lag: Floats,
    into_first: Ints,
    into_edge: Ints,
    from_first: Ints,
    from_edge: Ints,
    durations: Floats,
    scale: float,
    edge: Floats,
    last: Floats,
) -> float:
    """Weigh a flow's paths anew, each by exp(scale · its length); 1 in all then passes the end.

    A flow that conserves is a sum of paths; no path is ever listed. Where the flow is worked out
    backwards from the end, the share that each edge into a node has of it is multiplied by the
    total weight of what comes before (the forward pass sums these, as logarithms).
    edge: (edges,) and last: (n,), the flow in and out.
    Returns the logarithm of the total weight of the paths of a unit of flow.
    """
    n = len(durations)
    weight = np.empty(n)
    for i in range(n):
        a, b = into_first[i], into_first[i + 1]
        weight[i] = scale * durations[i]
        if a == b:
            continue
        inflow, most, total = 0.0, -np.inf, 0.0
        for k in range(a, b):
            inflow += edge[into_edge[k]]
        for k in range(a, b):
            e = into_edge[k]
            share = _EVEN / (b - a)
            share += (1.0 - _EVEN) * (edge[e] / inflow if inflow > 0.0 else 1.0 / (b - a))
            edge[e] = np.log(share) + weight[tail[e]] + scale * lag[e]
            most = max(most, edge[e])
        for k in range(a, b):
            edge[into_edge[k]] = np.exp(edge[into_edge[k]] - most)
            total += edge[into_edge[k]]
        for k in range(a, b):
            edge[into_edge[k]] /= total
        weight[i] += most + np.log(total)
    through, most, ends, total = 0.0, -np.inf, 0, 0.0
    for i in range(n):
        if from_first[i] == from_first[i + 1]:
            through += last[i]
            most = max(most, weight[i])
            ends += 1
    for i in range(n):
        if from_first[i] == from_first[i + 1]:
            share = (
                (1.0 - _EVEN) * last[i] / through + _EVEN / ends if through > 0.0 else 1.0 / ends
            )
            last[i] = share * np.exp(weight[i] - most)
            total += last[i]
        else:
            last[i] = 0.0
    for i in range(n - 1, -1, -1):
        last[i] /= total
        out = last[i]
        for k in range(from_first[i], from_first[i + 1]):
            out += edge[from_edge[k]]
        for k in range(into_first[i], into_first[i + 1]):
            edge[into_edge[k]] *= out
    return float(most + np.log(total))
