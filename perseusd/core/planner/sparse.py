"""Networks of springs: sparse symmetric systems whose off-diagonals are all negative.

Nodes are joined by springs (conductance ≥ 0) and some hang on a fixed point, *ground*. Taking nodes
out one by one puts springs between their neighbours instead, which is L D Lᵀ of the system's matrix
(George and Liu, 1981). Pivots are sums of springs, never differences, so that stiff and slack ones,
twenty orders of magnitude apart, do not spoil one another (Grassmann, Taksar and Heyman, 1985).

The springs here are those of a precedence graph: the far end of node t's computation is a joint,
tied to t itself by 1 / flex(t), to every h of an edge t → h by stiff(t → h), and to ground. Joints
are taken out by hand (a star becomes a mesh), which leaves one unknown a node. Nodes are taken out
in topological order: few are pending at any time, so that columns stay short.

A pattern is (5, …): row 0 where L's columns begin among its entries, row 1 where its rows begin,
row 2 the entries' row numbers, column by column and ascending; row 3 the entries row by row,
and row 4 the columns which those are in, ascending.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from perseusd.core.planner.compiled import compiled

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_TINY = 1e-300  # instead of the pivot 0 of a node whose springs have all vanished


@compiled("i8[::1](i8[::1], i8[::1], i8[::1])")
def columns(from_first: Ints, from_edge: Ints, head: Ints) -> Ints:
    """L's columns one after another, each as how many rows and then which, in no order.

    A column has the node's own heads, and what the columns have whose first row it is: they would
    be taken out just before (the elimination tree).
    """
    n = len(from_first) - 1
    found = np.empty(16 + 8 * n, dtype=np.int64)
    begin = np.empty(n, dtype=np.int64)
    seen = np.full(n, -1, dtype=np.int64)
    child, sibling = np.full(n, -1, dtype=np.int64), np.full(n, -1, dtype=np.int64)
    used = 0
    for k in range(n):
        if used + n - k > len(found):
            found = np.concatenate((found, np.empty(len(found) + n, dtype=np.int64)))
        begin[k] = at = used
        parent = n
        for a in range(from_first[k], from_first[k + 1]):
            row = head[from_edge[a]]
            if seen[row] != k:
                seen[row] = k
                at += 1
                found[at] = row
                parent = min(parent, row)
        c = child[k]
        while c >= 0:
            for p in range(begin[c] + 1, begin[c] + 1 + found[begin[c]]):
                row = found[p]
                if row > k and seen[row] != k:
                    seen[row] = k
                    at += 1
                    found[at] = row
                    parent = min(parent, row)
            c = sibling[c]
        found[used] = at - used
        used = at + 1
        if parent < n:
            sibling[k], child[parent] = child[parent], k
    return found[:used].copy()


@compiled("i8[:,::1](i8[::1], i8)")
def pattern_of(found: Ints, n: int) -> Ints:
    """The pattern of `columns`: sorting each way is passing through the other way in order."""
    pattern = np.zeros((5, max(n + 1, len(found) - n)), dtype=np.int64)
    first, row_first, row, entry, column = pattern
    at = 0
    for k in range(n):
        first[k + 1] = first[k] + found[at]
        for p in range(at + 1, at + 1 + found[at]):
            row_first[found[p] + 1] += 1
        at += 1 + found[at]
    for k in range(n):
        row_first[k + 1] += row_first[k]
    free = row_first[:n].copy()
    at = 0
    for k in range(n):
        for p in range(at + 1, at + 1 + found[at]):
            column[free[found[p]]] = k
            free[found[p]] += 1
        at += 1 + found[at]
    free = first[:n].copy()
    for k in range(n):
        for p in range(row_first[k], row_first[k + 1]):
            c = column[p]
            row[free[c]] = k
            entry[p] = free[c]
            free[c] += 1
    return pattern


@compiled(
    "void(i8[:,::1], i8[::1], i8[::1], i8[::1], i8[::1], i8[::1], i8[::1],"
    " f8[::1], f8[::1], f8[::1], f8[::1], f8[::1], f8[::1])"
)
def factorise(
    pattern: Ints,
    into_first: Ints,
    into_edge: Ints,
    from_first: Ints,
    from_edge: Ints,
    tail: Ints,
    head: Ints,
    stiff: Floats,
    flex: Floats,
    weak: Floats,
    ground: Floats,
    value: Floats,
    pivot: Floats,
) -> None:
    """L's entries, times −1, to `value` (entries,) and D to `pivot` (n,), column by column.

    stiff: (edges,).  flex, weak: (n,), weak = 1 / (1 + flex · all springs at the joint but 1/flex).
    ground: (n,) springs from nodes, their joints taken out, to ground; overwritten.
    """
    n = len(into_first) - 1
    first, row_first, row, entry, column = pattern
    spring = np.zeros(n)  # of the column at hand, by row
    for k in range(n):
        for a in range(from_first[k], from_first[k + 1]):
            e = from_edge[a]
            spring[head[e]] += stiff[e] * weak[k]
        for b in range(into_first[k], into_first[k + 1]):
            t = tail[into_edge[b]]
            through = stiff[into_edge[b]] * flex[t] * weak[t]
            for a in range(from_first[t], from_first[t + 1]):
                e = from_edge[a]
                if head[e] > k:
                    spring[head[e]] += through * stiff[e]
        total = ground[k]
        for r in range(row_first[k], row_first[k + 1]):
            p, c = entry[r], column[r]
            share = value[p]  # of all that c hung on, what it hung on k by
            through = share * pivot[c]
            total += share * ground[c]
            for q in range(p + 1, first[c + 1]):
                spring[row[q]] += through * value[q]
        ground[k] = total
        for q in range(first[k], first[k + 1]):
            total += spring[row[q]]
        pivot[k] = total = max(total, _TINY)
        for q in range(first[k], first[k + 1]):
            value[q] = spring[row[q]] / total
            spring[row[q]] = 0.0


@compiled("void(i8[:,::1], f8[::1], f8[::1], f8[::1])")
def solve(pattern: Ints, value: Floats, pivot: Floats, x: Floats) -> None:
    """x: (n,) the forces on the nodes, overwritten by how far they move."""
    first, row = pattern[0], pattern[2]
    for k in range(len(x)):
        force = x[k]
        for q in range(first[k], first[k + 1]):
            x[row[q]] += value[q] * force
    for k in range(len(x) - 1, -1, -1):
        moved = x[k] / pivot[k]
        for q in range(first[k], first[k + 1]):
            moved += value[q] * x[row[q]]
        x[k] = moved
