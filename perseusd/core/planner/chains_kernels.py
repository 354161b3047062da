"""Kernels of the chain dynamic programme (chains.py): one chain's events timed anew, exactly.

The arrays are those of labels_kernels.py.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from perseusd.core.planner.compiled import compiled
from perseusd.core.planner.events_kernels import LAYOUT, MENU, STATE
from perseusd.core.planner.labels_kernels import (
    CHOICE,
    LABELS,
    ROUNDING,
    TRACE,
    WORK,
    arrivals,
    cheapest_point,
    cost_now,
    ends_near,
    find_latest,
    is_movable,
    limit_of,
    settled,
    starts_near,
)

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_FELL = 1e-12  # relative: by how much a cost must fall to count


@compiled(
    f"f8({LAYOUT}, {STATE}, {MENU}, {CHOICE}, f8, i8[::1], i8[::1], b1[::1], f8[::1],"
    f" i8[:,::1], {WORK}, f8[:,::1], i8[:,::1], {LABELS}, {TRACE})",
    inner=True,
)
def _walk(
    layout: tuple[Ints, ...],
    state: tuple[Floats, ...],
    menu: tuple[Floats, ...],
    choice: tuple[Ints, ...],
    deadline: float,
    chain: Ints,
    stops: Ints,
    on_chain: Bools,
    latest: Floats,
    near: Ints,
    work: tuple[Floats, ...],
    arrival: Floats,
    source: Ints,
    labels: tuple[Floats, ...],
    trace: tuple[Ints, ...],
) -> float:
    """Label all stops of the chain; what all of this costs now, or −inf where no label is left."""
    kind, end_first, end_event = layout[0], layout[4], layout[5]
    when, offset, wait, _, reach = state
    buckets = arrival.shape[1]
    before, earliest = 0.0, 0.0
    for k in range(len(stops)):
        g = stops[k]
        previous = chain[k - 1] if k > 0 else -1
        following = chain[k] if k < len(chain) else -1
        gap = 0.0
        if k == 0:
            earliest = when[g] - reach[g] if g > 0 else 0.0
        else:
            for x in range(end_first[previous], end_first[previous + 1]):
                if end_event[x] == g:
                    gap = wait[x]
            fastest = menu[0][kind[previous], choice[1][previous]]
            earliest = max(when[g] - reach[g], earliest + offset[previous] + fastest + gap)
        bucket = (min(when[g] + reach[g], latest[k]) - earliest) / (buckets - 1)
        bucket = max(bucket, ROUNDING * deadline)
        for b in range(buckets):
            arrival[1, b] = np.inf
        if k == 0:
            arrival[0, 0], arrival[1, 0] = earliest, 0.0
            source[0, 0], source[1, 0] = -1, -1
        else:
            before += cost_now(layout, state, menu, choice, previous, 0)
            limit = limit_of(layout, state, deadline, previous, g)
            arrivals(
                state, menu, choice, previous, kind[previous], k, limit, gap, earliest, bucket,
                latest[k], labels, trace, arrival, source,
            )  # fmt: skip
        ending, turns, held = ends_near(
            layout, state, menu, choice, deadline, on_chain, g, previous, earliest, near, work
        )
        count = starts_near(layout, state, menu, choice, deadline, g, following, ending, near, work)
        for z in range(count):
            before += cost_now(layout, state, menu, choice, near[0, z], 1)
        kept = settled(
            layout, state, menu, choice, k, ending, count, turns, held, latest[k], earliest,
            bucket, near, work, arrival, source, labels, trace,
        )  # fmt: skip
        if kept == 0:
            return -np.inf
    return before


@compiled(
    f"void({LAYOUT}, {STATE}, {MENU}, {CHOICE}, f8, i8[::1], i8[::1], b1[::1], f8[::1], i8,"
    f" {LABELS}, {TRACE})",
    inner=True,
)
def _follow_back(
    layout: tuple[Ints, ...],
    state: tuple[Floats, ...],
    menu: tuple[Floats, ...],
    choice: tuple[Ints, ...],
    deadline: float,
    chain: Ints,
    stops: Ints,
    on_chain: Bools,
    to: Floats,
    b: int,
    labels: tuple[Floats, ...],
    trace: tuple[Ints, ...],
) -> None:
    """Do what led to label b of the last stop. to: (stops,) to work in."""
    kind, event, member_first, member, _, _, in_first, in_end, end_of = layout
    when, offset, wait, price, _ = state
    chosen = choice[0]
    came, point = trace
    for k in range(len(stops) - 1, -1, -1):
        to[k] = labels[0][k, b]
        if k > 0:
            chosen[chain[k - 1]] = point[k, b]
        b = came[k, b]
    for k in range(len(stops)):
        g = stops[k]
        for x in range(in_first[g], in_first[g + 1]):
            i = end_of[in_end[x]]
            if (k == 0 or i != chain[k - 1]) and is_movable(layout, on_chain, i, g):
                limit = to[k] - wait[in_end[x]] + ROUNDING * to[k]
                limit = min(limit, limit_of(layout, state, deadline, i, g))
                start = when[event[i]] + offset[i]
                chosen[i] = cheapest_point(menu, choice, i, kind[i], price[i], start, limit)
        for x in range(member_first[g], member_first[g + 1]):
            i = member[x]
            if k >= len(chain) or i != chain[k]:
                limit = limit_of(layout, state, deadline, i, -1)
                start = to[k] + offset[i]
                chosen[i] = cheapest_point(menu, choice, i, kind[i], price[i], start, limit)
    for k in range(len(stops)):
        when[stops[k]] = to[k]


@compiled(
    f"f8({LAYOUT}, {STATE}, {MENU}, {CHOICE}, f8, i8[::1], b1[::1], i8[:,::1], {WORK},"
    f" f8[:,::1], i8[:,::1], {LABELS}, {TRACE})"
)
def retime_chain(
    layout: tuple[Ints, ...],
    state: tuple[Floats, ...],
    menu: tuple[Floats, ...],
    choice: tuple[Ints, ...],
    deadline: float,
    chain: Ints,
    on_chain: Bools,
    near: Ints,
    work: tuple[Floats, ...],
    arrival: Floats,
    source: Ints,
    labels: tuple[Floats, ...],
    trace: tuple[Ints, ...],
) -> float:
    """Time the events along a chain anew, and choose anew all that starts or ends at them.

    The events off the chain stay. State and choice change only where the priced cost falls;
    returns by how much.
    chain: computations, each starting at an end of the one before.
    on_chain: (events,) false, and left so. To work in: near (2, most near an event), work
    (turns, room, best: see `ends_near`), arrival and source (2, B), labels and trace.
    """
    kind, event, _, _, end_first, end_event, _, _, _ = layout
    length, last = len(chain), chain[-1]
    open_end = end_first[last] < end_first[last + 1]
    stops = np.empty(length + 1 if open_end else length, np.int64)
    for k in range(length):
        stops[k] = event[chain[k]]
    if open_end:
        stops[length] = end_event[end_first[last]]
    latest = np.empty(len(stops))
    find_latest(layout, state, menu, choice, deadline, chain, stops, latest)
    for g in stops:
        on_chain[g] = True
    before = _walk(
        layout, state, menu, choice, deadline, chain, stops, on_chain, latest, near, work, arrival,
        source, labels, trace,
    )  # fmt: skip
    at, value = labels
    after, ended, final = np.inf, -1, -1
    final_price = state[3][last]
    if not open_end:
        before += cost_now(layout, state, menu, choice, last, 0)
    for b in range(value.shape[1]):
        total, p = value[len(stops) - 1, b], -1
        if before == -np.inf or total == np.inf:
            continue
        if not open_end:
            start = at[length - 1, b] + state[1][last]
            limit = limit_of(layout, state, deadline, last, -1)
            p = cheapest_point(menu, choice, last, kind[last], final_price, start, limit)
            if p < 0:
                continue
            total += menu[1][kind[last], p] + final_price * menu[0][kind[last], p]
        if total < after:
            after, ended, final = total, b, p
    fell = before - after > _FELL * abs(before)
    if fell:
        if not open_end:
            choice[0][last] = final
        _follow_back(
            layout, state, menu, choice, deadline, chain, stops, on_chain, latest, ended, labels,
            trace,
        )  # fmt: skip
    for g in stops:
        on_chain[g] = False
    return before - after if fell else 0.0
