"""The loops of timetable.py, which tells what they work on.

LAYOUT: into_first, into_node, into_lag, from_first, from_node, from_lag, cross_first, cross_tail,
    cross_head, cross_lag.
TIMES: factor (n, K); end, rest, trial (n + 1, K); duration, wanted (n,); makespan, tried (K,);
    changed (n,), touched (n + 2,).
A proposal has a number, touched[n + 1]. It names its nodes by changed[i] = number and their new
durations in wanted[i]; touched[i] = number then says that trial[i] is i's end if it is kept.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from perseusd.core.planner.compiled import compiled

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Layout = tuple[Ints, Ints, Floats, Ints, Ints, Floats, Ints, Ints, Ints, Floats]
Times = tuple[Floats, Floats, Floats, Floats, Floats, Floats, Floats, Floats, Ints, Ints]

LAYOUT = (
    "Tuple((i8[::1], i8[::1], f8[::1], i8[::1], i8[::1], f8[::1],"
    " i8[::1], i8[::1], i8[::1], f8[::1]))"
)
TIMES = (
    "Tuple((f8[:, ::1], f8[:, ::1], f8[:, ::1], f8[:, ::1], f8[::1], f8[::1], f8[::1], f8[::1],"
    " i8[::1], i8[::1]))"
)


@compiled("f8(f8[::1], f8)")
def statistic(values: Floats, confidence: float) -> float:
    """The mean of (K,) iteration times, or the time that a share `confidence` ≥ 0 of them keeps,
    interpolated as numpy's quantile is."""
    count = len(values)
    if confidence < 0.0:
        total = 0.0
        for k in range(count):
            total += values[k]
        return total / count
    at = confidence * (count - 1)
    low = int(at)
    # the largest count − low values, the least of them first
    kept = count - low
    top = np.empty(kept)
    held = 0
    for k in range(count):
        value = values[k]
        if held < kept:
            slot = held
            held += 1
            while slot > 0 and top[slot - 1] > value:
                top[slot] = top[slot - 1]
                slot -= 1
            top[slot] = value
        elif value > top[0]:
            slot = 0
            while slot + 1 < kept and top[slot + 1] < value:
                top[slot] = top[slot + 1]
                slot += 1
            top[slot] = value
    above = top[1] if kept > 1 else top[0]
    return float(top[0] + (at - low) * (above - top[0]))


@compiled(f"void({LAYOUT}, {TIMES})")
def time_all(layout: Layout, times: Times) -> None:
    """End, rest and makespan of `duration`, from scratch."""
    into_first, into_node, into_lag, from_first, from_node, from_lag = layout[:6]
    factor, end, rest, _, duration, _, makespan = times[:7]
    n, samples = factor.shape
    makespan[:] = 0.0
    for i in range(n):
        row = end[i]
        row[:] = 0.0
        for e in range(into_first[i], into_first[i + 1]):
            before, lag = end[into_node[e]], into_lag[e]
            for k in range(samples):
                reach = before[k] + lag
                row[k] = reach if reach > row[k] else row[k]
        for k in range(samples):
            row[k] += duration[i] * factor[i, k]
            makespan[k] = row[k] if row[k] > makespan[k] else makespan[k]
    for i in range(n - 1, -1, -1):
        row = rest[i]
        row[:] = 0.0
        for e in range(from_first[i], from_first[i + 1]):
            after, lag = rest[from_node[e]], from_lag[e]
            for k in range(samples):
                reach = after[k] + lag
                row[k] = reach if reach > row[k] else row[k]
        for k in range(samples):
            row[k] += duration[i] * factor[i, k]


@compiled(f"void({LAYOUT}, {TIMES}, i8, i8)")
def try_change(layout: Layout, times: Times, first: int, last: int) -> None:
    """`tried` makespans if the proposal, whose nodes lie in first … last, were kept."""
    into_first, into_node, into_lag = layout[:3]
    cross_first, cross_tail, cross_head, cross_lag = layout[6:]
    factor, end, rest, trial, duration, wanted, makespan, tried, changed, touched = times
    n, samples = factor.shape
    number = touched[n + 1]
    for i in range(first, last + 1):
        proposed = changed[i] == number
        dirty = proposed
        for e in range(into_first[i], into_first[i + 1]):
            dirty = dirty or touched[into_node[e]] == number
        if not dirty:
            continue
        row = trial[i]
        row[:] = 0.0
        for e in range(into_first[i], into_first[i + 1]):
            u, lag = into_node[e], into_lag[e]
            before = trial[u] if touched[u] == number else end[u]
            for k in range(samples):
                reach = before[k] + lag
                row[k] = reach if reach > row[k] else row[k]
        length = wanted[i] if proposed else duration[i]
        moved = 0
        for k in range(samples):
            row[k] += length * factor[i, k]
            moved += row[k] != end[i, k]
        if moved:
            touched[i] = number
    tried[:] = 0.0
    reached = False
    for c in range(cross_first[last], cross_first[last + 1]):
        u, lag = cross_tail[c], cross_lag[c]
        after = rest[cross_head[c]]
        if touched[u] == number:
            before = trial[u]
            reached = True
        else:
            before = end[u]
        for k in range(samples):
            reach = before[k] + after[k] + lag
            tried[k] = reach if reach > tried[k] else tried[k]
    if not reached:
        for k in range(samples):
            tried[k] = makespan[k]


@compiled(f"void({LAYOUT}, {TIMES}, i8, i8)")
def keep_change(layout: Layout, times: Times, first: int, last: int) -> None:
    """Make the proposal that was just tried the plan: its ends, rests and makespans."""
    into_first, into_node, into_lag, from_first, from_node, from_lag = layout[:6]
    factor, end, rest, trial, duration, wanted, makespan, tried, changed, touched = times
    n, samples = factor.shape
    number = touched[n + 1]
    for k in range(samples):
        makespan[k] = tried[k]
    reach = last
    for i in range(first, n):
        if i > reach:
            break
        if i > last:
            dirty = False
            for e in range(into_first[i], into_first[i + 1]):
                dirty = dirty or touched[into_node[e]] == number
            if not dirty:
                continue
            row = trial[i]
            row[:] = 0.0
            for e in range(into_first[i], into_first[i + 1]):
                before, lag = end[into_node[e]], into_lag[e]
                for k in range(samples):
                    later = before[k] + lag
                    row[k] = later if later > row[k] else row[k]
            moved = 0
            for k in range(samples):
                row[k] += duration[i] * factor[i, k]
                moved += row[k] != end[i, k]
            if moved:
                touched[i] = number
        if changed[i] == number:
            duration[i] = wanted[i]
        if touched[i] == number:
            for k in range(samples):
                end[i, k] = trial[i, k]
            for e in range(from_first[i], from_first[i + 1]):
                reach = max(reach, from_node[e])
    touched[n + 1] += 1  # the same marks, now of rests
    backward = touched[n + 1]
    reach = first
    for i in range(last, -1, -1):
        if i < reach:
            break
        dirty = changed[i] == number
        for e in range(from_first[i], from_first[i + 1]):
            dirty = dirty or touched[from_node[e]] == backward
        if not dirty:
            continue
        row = trial[i]
        row[:] = 0.0
        for e in range(from_first[i], from_first[i + 1]):
            after, lag = rest[from_node[e]], from_lag[e]
            for k in range(samples):
                later = after[k] + lag
                row[k] = later if later > row[k] else row[k]
        moved = 0
        for k in range(samples):
            row[k] += duration[i] * factor[i, k]
            moved += row[k] != rest[i, k]
        if moved:
            touched[i] = backward
            for k in range(samples):
                rest[i, k] = row[k]
            for e in range(into_first[i], into_first[i + 1]):
                reach = min(reach, into_node[e])
