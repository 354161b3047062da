"""Kernels of the chain dynamic programme: the labels of one event, and who is near it.

layout, state: see events_kernels.py.  menu: time and cost of Points, (kinds, P).
choice: (n,) the points chosen, and the first and the last that may be.
labels: (stops, B) time and priced cost of the way there; value inf where there is none.
trace: (stops, B) where a label came from: the bucket before, and the point in between.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from perseusd.core.planner.compiled import compiled
from perseusd.core.planner.events_kernels import LAYOUT, MENU, STATE

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CHOICE = "UniTuple(i8[::1], 3)"
LABELS = "UniTuple(f8[:,::1], 2)"
TRACE = "UniTuple(i8[:,::1], 2)"
WORK = "UniTuple(f8[:,::1], 3)"
# Times are sums and differences of some that are as large as the deadline: they are rounded by
# about so much of it. What misses by less is on time.
ROUNDING = 4e-16


@compiled(f"f8({LAYOUT}, {STATE}, f8, i8, i8)", inner=True)
def limit_of(
    layout: tuple[Ints, ...], state: tuple[Floats, ...], deadline: float, i: int, but: int
) -> float:
    """By when computation i must end for its events to stay where they are, all but one."""
    end_first, end_event = layout[4], layout[5]
    when, wait = state[0], state[2]
    limit = deadline * (1.0 + ROUNDING)
    for x in range(end_first[i], end_first[i + 1]):
        if end_event[x] != but:
            limit = min(limit, when[end_event[x]] - wait[x] + ROUNDING * deadline)
    return limit


@compiled(f"i8({LAYOUT}, b1[::1], i8, i8)", inner=True)
def is_movable(layout: tuple[Ints, ...], on_chain: Bools, i: int, g: int) -> int:
    """1 where computation i starts off the chain and ends on it at event g alone, otherwise 0."""
    event, end_first, end_event = layout[1], layout[4], layout[5]
    if on_chain[event[i]]:
        return 0
    for x in range(end_first[i], end_first[i + 1]):
        if end_event[x] != g and on_chain[end_event[x]]:
            return 0
    return 1


@compiled(f"i8({MENU}, {CHOICE}, i8, i8, f8, f8, f8)", inner=True)
def cheapest_point(
    menu: tuple[Floats, ...],
    choice: tuple[Ints, ...],
    i: int,
    k: int,
    price: float,
    start: float,
    limit: float,
) -> int:
    """The point of least priced cost at which i, of kind k, ends by the limit, or −1."""
    time, cost = menu
    _, low, high = choice
    best, least = -1, np.inf
    for p in range(low[i], high[i] + 1):
        if start + time[k, p] > limit:
            break
        value = cost[k, p] + price * time[k, p]
        if value <= least:
            best, least = p, value
    return best


@compiled(f"f8({LAYOUT}, {STATE}, {MENU}, {CHOICE}, i8, i8)", inner=True)
def cost_now(
    layout: tuple[Ints, ...],
    state: tuple[Floats, ...],
    menu: tuple[Floats, ...],
    choice: tuple[Ints, ...],
    i: int,
    above_least: int,
) -> float:
    """What computation i costs now, priced; 1: above the least it could."""
    time, cost = menu
    chosen = choice[0]
    k, price = layout[0][i], state[3][i]
    value: float = cost[k, chosen[i]] + price * time[k, chosen[i]]
    if above_least:
        p = cheapest_point(menu, choice, i, k, price, 0.0, np.inf)
        value -= cost[k, p] + price * time[k, p]
    return value


@compiled(f"void({LAYOUT}, {STATE}, {MENU}, {CHOICE}, f8, i8[::1], i8[::1], f8[::1])", inner=True)
def find_latest(
    layout: tuple[Ints, ...],
    state: tuple[Floats, ...],
    menu: tuple[Floats, ...],
    choice: tuple[Ints, ...],
    deadline: float,
    chain: Ints,
    stops: Ints,
    latest: Floats,
) -> None:
    """Up to when each of the chain's events leaves time for what follows at its fastest point."""
    kind, _, member_first, member, end_first, end_event, _, _, _ = layout
    offset, wait, low = state[1], state[2], choice[1]
    for k in range(len(stops) - 1, -1, -1):
        latest[k] = np.inf
        for x in range(member_first[stops[k]], member_first[stops[k] + 1]):
            i = member[x]
            if k + 1 < len(stops) and i == chain[k]:
                limit = limit_of(layout, state, deadline, i, stops[k + 1])
                for y in range(end_first[i], end_first[i + 1]):
                    if end_event[y] == stops[k + 1]:
                        limit = min(limit, latest[k + 1] - wait[y])
            else:
                limit = limit_of(layout, state, deadline, i, -1)
            latest[k] = min(latest[k], limit - menu[0][kind[i], low[i]] - offset[i])
        latest[k] += ROUNDING * deadline
        if stops[k] == 0:
            latest[k] = 0.0


@compiled(
    f"void({STATE}, {MENU}, {CHOICE}, i8, i8, i8, f8, f8, f8, f8, f8, {LABELS}, {TRACE},"
    " f8[:,::1], i8[:,::1])",
    inner=True,
)
def arrivals(
    state: tuple[Floats, ...],
    menu: tuple[Floats, ...],
    choice: tuple[Ints, ...],
    i: int,
    kind: int,
    k: int,
    limit: float,
    gap: float,
    earliest: float,
    bucket: float,
    latest: float,
    labels: tuple[Floats, ...],
    trace: tuple[Ints, ...],
    arrival: Floats,
    source: Ints,
) -> None:
    """The cheapest arrival in each bucket of event k from the labels of the one before it.

    i, of the kind, runs in between and ends by the limit; the event comes so long (gap) after.
    arrival: (2, B) times and values.  source: (2, B) the label's bucket and i's point.
    """
    offset, price = state[1], state[3]
    time, cost = menu
    _, low, high = choice
    at, value = labels
    buckets = value.shape[1]
    limit = min(limit, latest - gap)
    for b in range(buckets):
        if value[k - 1, b] == np.inf:
            continue
        start = at[k - 1, b] + offset[i]
        for p in range(low[i], high[i] + 1):
            end = start + time[kind, p]
            if end > limit:
                break
            end = max(end + gap, earliest)
            to = int((end - earliest) / bucket)
            if to >= buckets:
                break
            total = value[k - 1, b] + cost[kind, p] + price[i] * time[kind, p]
            if total < arrival[1, to]:
                arrival[0, to], arrival[1, to] = end, total
                source[0, to], source[1, to] = b, p


@compiled(f"void({LAYOUT}, {STATE}, {MENU}, {CHOICE}, i8, i8, f8[:,::1])", inner=True)
def _rank_points(
    layout: tuple[Ints, ...],
    state: tuple[Floats, ...],
    menu: tuple[Floats, ...],
    choice: tuple[Ints, ...],
    i: int,
    z: int,
    best: Floats,
) -> None:
    """best[z]: computation i's least priced cost up to each point, above the least of all."""
    time, cost = menu
    _, low, high = choice
    k, price = layout[0][i], state[3][i]
    least = np.inf
    for p in range(low[i], high[i] + 1):
        least = min(least, cost[k, p] + price * time[k, p])
        best[z, p] = least
    for p in range(low[i], high[i] + 1):
        best[z, p] -= least


@compiled("void(f8[:,::1], i8, f8)", inner=True)
def _insert(sorted_row: Floats, count: int, value: float) -> None:
    """Put a value where it belongs among the first `count` of row 0."""
    at = count
    while at > 0 and sorted_row[0, at - 1] > value:
        sorted_row[0, at] = sorted_row[0, at - 1]
        at -= 1
    sorted_row[0, at] = value


@compiled(
    f"Tuple((i8, i8, f8))({LAYOUT}, {STATE}, {MENU}, {CHOICE}, f8, b1[::1], i8, i8, f8,"
    f" i8[:,::1], {WORK})",
    inner=True,
)
def ends_near(
    layout: tuple[Ints, ...],
    state: tuple[Floats, ...],
    menu: tuple[Floats, ...],
    choice: tuple[Ints, ...],
    deadline: float,
    on_chain: Bools,
    g: int,
    but: int,
    earliest: float,
    near: Ints,
    work: tuple[Floats, ...],
) -> tuple[int, int, float]:
    """Who ends at event g, all but one: how many of them move with it, and how many turns.

    near: (2, …) they, and the last point that fits so far.
    work: turn (1, …) the times, sorted, at which one more point of one of them is reached; room
    (2, …) by when they must end for their other events, and how long before this one; best (…, P)
    the least priced cost up to each point, above the least of all.
    Returned last: until when the event must wait for those that do not move with it.
    """
    kind, event, _, _, _, _, in_first, in_end, end_of = layout
    when, offset, wait, _, _ = state
    time = menu[0]
    _, low, high = choice
    turn, room, best = work
    count, turns, held = 0, 0, -np.inf
    for x in range(in_first[g], in_first[g + 1]):
        i = end_of[in_end[x]]
        if i == but:
            continue
        gap = wait[in_end[x]]
        if not is_movable(layout, on_chain, i, g):
            held = max(held, limit_of(layout, state, deadline, i, -1) + gap)
            continue
        near[0, count], near[1, count] = i, low[i] - 1
        room[0, count], room[1, count] = limit_of(layout, state, deadline, i, g), gap
        _rank_points(layout, state, menu, choice, i, count, best)
        for p in range(low[i], high[i] + 1):
            end = when[event[i]] + offset[i] + time[kind[i], p]
            if end <= room[0, count] and end + gap >= earliest:
                _insert(turn, turns, end + gap)
                turns += 1
        count += 1
    if held >= earliest:
        _insert(turn, turns, held)
        turns += 1
    return count, turns, held


@compiled(f"i8({LAYOUT}, {STATE}, {MENU}, {CHOICE}, f8, i8, i8, i8, i8[:,::1], {WORK})", inner=True)
def starts_near(
    layout: tuple[Ints, ...],
    state: tuple[Floats, ...],
    menu: tuple[Floats, ...],
    choice: tuple[Ints, ...],
    deadline: float,
    g: int,
    but: int,
    count: int,
    near: Ints,
    work: tuple[Floats, ...],
) -> int:
    """Add to `near` who starts at event g, all but one; returns how many are near then."""
    member_first, member = layout[2], layout[3]
    _, room, best = work
    for x in range(member_first[g], member_first[g + 1]):
        i = member[x]
        if i != but:
            near[0, count], near[1, count] = i, choice[2][i]
            room[0, count], room[1, count] = limit_of(layout, state, deadline, i, -1), 0.0
            _rank_points(layout, state, menu, choice, i, count, best)
            count += 1
    return count


@compiled(
    f"i8({LAYOUT}, {STATE}, {MENU}, {CHOICE}, i8, i8, i8, i8, f8, f8, f8, f8, i8[:,::1],"
    f" {WORK}, f8[:,::1], i8[:,::1], {LABELS}, {TRACE})",
    inner=True,
)
def settled(
    layout: tuple[Ints, ...],
    state: tuple[Floats, ...],
    menu: tuple[Floats, ...],
    choice: tuple[Ints, ...],
    k: int,
    ending: int,
    count: int,
    turns: int,
    held: float,
    latest: float,
    earliest: float,
    bucket: float,
    near: Ints,
    work: tuple[Floats, ...],
    arrival: Floats,
    source: Ints,
    labels: tuple[Floats, ...],
    trace: tuple[Ints, ...],
) -> int:
    """The labels of event k: how many.

    In order of time: every arrival, and the cheapest arrival so far waiting for each turn. With
    the event at that time everybody near takes the cheapest point that fits; a label stays where
    no earlier one is as cheap.
    """
    kind, event = layout[0], layout[1]
    when, offset = state[0], state[1]
    time = menu[0]
    low, high = choice[1], choice[2]
    turn, room, best = work
    at, value = labels
    came, point = trace
    buckets = value.shape[1]
    cheapest, cheapest_from = np.inf, -1
    least = np.inf
    now, kept = 0, 0
    for b in range(buckets):
        value[k, b] = np.inf
        until = earliest + bucket * (b + 1) if b < buckets - 1 else np.inf
        arriving = arrival[1, b] < np.inf
        while arriving or (now < turns and turn[0, now] < until):
            if arriving and (
                now == turns or arrival[0, b] <= turn[0, now] or turn[0, now] >= until
            ):
                arriving = False
                t, total, origin = arrival[0, b], arrival[1, b], b
                if total < cheapest:
                    cheapest, cheapest_from = total, b
            else:
                t, total, origin = turn[0, now], cheapest, cheapest_from
                now += 1
            if total >= least or t < held - ROUNDING * t or t > latest:
                continue
            for z in range(count):
                i = near[0, z]
                if z < ending:
                    start = when[event[i]] + offset[i]
                    limit = min(room[0, z], t - room[1, z] + ROUNDING * t)
                    while near[1, z] < high[i] and start + time[kind[i], near[1, z] + 1] <= limit:
                        near[1, z] += 1
                else:
                    start = t + offset[i]
                    while near[1, z] >= low[i] and start + time[kind[i], near[1, z]] > room[0, z]:
                        near[1, z] -= 1
                if near[1, z] < low[i]:
                    total = np.inf
                else:
                    total += best[z, near[1, z]]
            if total < least:
                least = total
                at[k, b], value[k, b] = t, total
                came[k, b], point[k, b] = source[0, origin], source[1, origin]
                kept += 1
    return kept
