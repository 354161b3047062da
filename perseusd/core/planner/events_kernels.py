"""Kernels of the events between computations (events.py): which there are, and when.

Layout, as int64 arrays in one tuple (see events.Layout):
    kind            (n,)
    event           (n,)     where computation i starts
    member_first, member     the computations that start at event g
    end_first, end_event     the events that wait for computation i: its *ends*
    in_first, in_end         the ends at event g, numbers into end_event
    end_of          (ends,)  the computation of each end
State, as float64 arrays in one tuple:
    when            (events,) event times
    offset          (n,)     a computation starts so long after its event: where lags differ
    wait            (ends,)  an event comes at least so long after the computation's end
    price           (n,)     joules for a second of each computation, on top of its cost
    reach           (events,) how far from now an event may be moved, seconds
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from perseusd.core.planner.compiled import compiled

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LAYOUT = "UniTuple(i8[::1], 9)"
STATE = "UniTuple(f8[::1], 5)"
MENU = "UniTuple(f8[:,::1], 2)"


@compiled("i8(i8[::1], i8[::1], i8[::1], i8[::1], i8[::1], i8[::1], i8[::1])")
def find_events(
    into_first: Ints,
    into_edge: Ints,
    tail: Ints,
    from_first: Ints,
    from_edge: Ints,
    head: Ints,
    event: Ints,
) -> int:
    """(n,) event: the same number where the same computations come before. Returns how many.

    Events are numbered in topological order; where nothing comes before it is event 0.
    """
    n = len(event)
    for i in range(n):
        event[i] = -1
    events = 1  # the first node has nothing before it
    for j in range(n):
        size = into_first[j + 1] - into_first[j]
        if size == 0:
            event[j] = 0
            continue
        before = tail[into_edge[into_first[j]]]
        for x in range(from_first[before], from_first[before + 1]):
            k = head[from_edge[x]]
            if event[k] < 0 or into_first[k + 1] - into_first[k] != size:
                continue
            shared = 0
            for y in range(into_first[j], into_first[j + 1]):
                for z in range(into_first[k], into_first[k + 1]):
                    if tail[into_edge[y]] == tail[into_edge[z]]:
                        shared += 1
                        break
            if shared == size:
                event[j] = event[k]
                break
        if event[j] < 0:
            event[j] = events
            events += 1
    return events


@compiled("i8(i8[::1], i8[::1], i8[::1], i8[::1], i8[::1], i8[::1], i8[::1])")
def find_ends(
    from_first: Ints,
    from_edge: Ints,
    head: Ints,
    event: Ints,
    end_first: Ints,
    end_event: Ints,
    end_of_edge: Ints,
) -> int:
    """Each computation's ends, and which of them every edge belongs to. Returns how many."""
    ends = 0
    for i in range(len(event)):
        end_first[i] = ends
        for x in range(from_first[i], from_first[i + 1]):
            g = event[head[from_edge[x]]]
            at = ends
            for y in range(end_first[i], ends):
                if end_event[y] == g:
                    at = y
            if at == ends:
                end_event[at] = g
                ends += 1
            end_of_edge[from_edge[x]] = at
    end_first[len(event)] = ends
    return ends


@compiled(f"f8({LAYOUT}, {STATE}, {MENU}, i8[::1], f8, f8, UniTuple(i8[::1], 5), f8[::1])")
def time_events(
    layout: tuple[Ints, ...],
    state: tuple[Floats, ...],
    menu: tuple[Floats, ...],
    chosen: Ints,
    deadline: float,
    share: float,
    edges: tuple[Ints, ...],
    lag: Floats,
) -> float:
    """Event times, offsets and waits at these points; returns the makespan.

    share: 0 puts every event at its earliest, 1 at its latest, and what is between between.
    edges: the network's into_first, into_edge, tail, head, and the end of every edge.
    """
    kind, event, _, _, end_first, end_event, _, _, _ = layout
    when, offset, wait, _, _ = state
    time, _ = menu
    into_first, into_edge, tail, head, end_of_edge = edges
    n = len(kind)
    start = np.zeros(n)
    for g in range(len(when)):
        when[g] = np.inf
    makespan = 0.0
    for j in range(n):
        for x in range(into_first[j], into_first[j + 1]):
            e = into_edge[x]
            i = tail[e]
            start[j] = max(start[j], start[i] + time[kind[i], chosen[i]] + lag[e])
        makespan = max(makespan, start[j] + time[kind[j], chosen[j]])
        when[event[j]] = min(when[event[j]], start[j])
    for j in range(n):
        offset[j] = start[j] - when[event[j]]
    for x in range(len(wait)):
        wait[x] = -np.inf
    for e in range(len(head)):
        wait[end_of_edge[e]] = max(wait[end_of_edge[e]], lag[e] - offset[head[e]])
    if share > 0.0:
        latest = np.full(len(when), np.inf)
        for i in range(n - 1, -1, -1):
            limit = deadline
            for x in range(end_first[i], end_first[i + 1]):
                limit = min(limit, latest[end_event[x]] - wait[x])
            at = limit - time[kind[i], chosen[i]] - offset[i]
            latest[event[i]] = min(latest[event[i]], at)
        for g in range(1, len(when)):
            when[g] += share * max(0.0, latest[g] - when[g])
    return makespan


@compiled("i8(i8[::1], i8[::1], i8[::1], i8[::1], i8[::1], i8[::1])")
def find_crossings(
    from_first: Ints, from_edge: Ints, head: Ints, rank: Ints, following: Ints, starts: Ints
) -> int:
    """Paths that share no node: what follows each node on its path, or −1, and where paths start.

    Another rank is preferred where there is one that no path leads to yet. Returns how many paths.
    """
    n = len(rank)
    reached = np.zeros(n, np.bool_)
    paths = 0
    for i in range(n):
        if not reached[i]:
            starts[paths] = i
            paths += 1
        for stay in range(2):
            for x in range(from_first[i], from_first[i + 1]):
                j = head[from_edge[x]]
                if following[i] < 0 and not reached[j] and (rank[j] == rank[i]) == (stay == 1):
                    following[i] = j
                    reached[j] = True
    return paths


@compiled("i8[::1](i8[::1], i8)")
def follow(following: Ints, start: int) -> Ints:
    """The path from a node on."""
    path = np.empty(len(following), np.int64)
    length = 0
    node = start
    while node >= 0:
        path[length] = node
        length += 1
        node = following[node]
    return path[:length].copy()
