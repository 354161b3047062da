"""Kernels of the first plans within a budget of writes: a descent, one run of one rank at a time.

What is minimised is cost + write_price · writes + late_price · lateness.

tables: (tail, lag, into_first, into_edge, rank_first, rank_node, kind, full, kind_time, kind_cost)
    of Network and Instance.
rules: (deadline in s, most writes, whether full clock is returned to at the end, J that a write
    must save, J that a second of lateness costs).
now, nodes, top: one rank's options in order of execution, its nodes, and its option full clock.
state: (3,) cost with the writes' price, makespan, and the writes of the rank at hand.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from perseusd.core.planner.compiled import compiled

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Tables = tuple[Ints, Floats, Ints, Ints, Ints, Ints, Ints, Ints, Floats, Floats]
Rules = tuple[float, int, bool, float, float]

TABLES = (
    "Tuple((i8[::1], f8[::1], i8[::1], i8[::1], i8[::1], i8[::1], i8[::1], i8[::1],"
    "f8[:,::1], f8[:,::1]))"
)
RULES = "Tuple((f8, i8, b1, f8, f8))"
_STEPS = 4  # options a run goes up or down at once, at most
_SHIFTS = 3  # positions a border between runs moves at once, at most
_GAIN = 1e-9  # of the plan's cost: less is rounding


@compiled(f"f8({TABLES}, i8, f8[::1], f8[::1], f8[::1])", inner=True)
def ends_from(tables: Tables, first: int, durations: Floats, before: Floats, end: Floats) -> float:
    """Fill (n,) earliest ends, where nodes below `first` end as before; returns the last."""
    tail, lag, into_first, into_edge = tables[0], tables[1], tables[2], tables[3]
    last = 0.0
    for i in range(len(durations)):
        if i < first:
            end[i] = before[i]
        else:
            start = 0.0
            for k in range(into_first[i], into_first[i + 1]):
                e = into_edge[k]
                start = max(start, end[tail[e]] + lag[e])
            end[i] = start + durations[i]
        last = max(last, end[i])
    return last


@compiled("i8(i8[::1], i8, b1)", inner=True)
def writes_of(option: Ints, full: int, full_clock_at_end: bool) -> int:
    """Clock writes of one rank's (positions,) options; see runs.writes."""
    last = option[len(option) - 1]
    count = 0
    for i in range(1, len(option)):
        count += int(option[i] != option[i - 1])
    if full_clock_at_end:
        return count + int(option[0] != full) + int(last != full)
    return count + int(option[0] != last)


@compiled("Tuple((i8, i8, i8))(i8[::1], i8, i8)", inner=True)
def changed(option: Ints, first: int, move: int) -> tuple[int, int, int]:
    """The move-th change of the run that begins at `first`: (first, end (exclusive), option).

    Its option steps down and up, then its last border shifts either way. The option may be one
    that there is not.
    """
    end = first + 1
    while end < len(option) and option[end] == option[first]:
        end += 1
    if move < 2 * _STEPS:
        step = move - _STEPS if move < _STEPS else move - _STEPS + 1
        return first, end, option[first] + step
    if end == len(option):
        return first, end, -1
    shift = (move - 2 * _STEPS) // 2 + 1
    if move % 2 == 0:
        return max(first, end - shift), end, option[end]
    last = end
    while last < len(option) and last < end + shift and option[last] == option[end]:
        last += 1
    return end, last, option[first]


@compiled(f"void({TABLES}, {RULES}, i8[::1], f8[::1], f8[::1], f8[::1], f8[::1])", inner=True)
def begin(
    tables: Tables,
    rules: Rules,
    ordered: Ints,
    durations: Floats,
    end: Floats,
    written: Floats,
    state: Floats,
) -> None:
    """Fill durations and ends (n,), each rank's writes (R,), and the state.

    ordered: (n,) options rank by rank.
    """
    _, _, _, _, rank_first, rank_node, kind, full, kind_time, kind_cost = tables
    state[0] = 0.0
    for p in range(len(ordered)):
        i = rank_node[p]
        durations[i] = kind_time[kind[i], ordered[p]]
        state[0] += kind_cost[kind[i], ordered[p]]
    state[1] = ends_from(tables, 0, durations, end, end)
    for r in range(len(written)):
        a, b = rank_first[r], rank_first[r + 1]
        written[r] = writes_of(ordered[a:b], full[rank_node[a]], rules[2])
        state[0] += rules[3] * written[r]


@compiled(
    f"b1({TABLES}, {RULES}, i8[::1], i8[::1], Tuple((i8, i8, i8)), f8, f8[::1], f8[::1], f8[::1],"
    "f8[::1])",
    inner=True,
)
def attempt(
    tables: Tables,
    rules: Rules,
    nodes: Ints,
    now: Ints,
    change: tuple[int, int, int],
    needed: float,
    durations: Floats,
    end: Floats,
    trial: Floats,
    state: Floats,
) -> bool:
    """Make a change if it can be made and gains more than is needed; was it made?

    change: (first, end (exclusive), option); these positions are all at one option.
    durations, end: (n,) of the present options.  trial: (n,) room to work in.
    """
    _, _, _, _, _, _, kind, full, kind_time, kind_cost = tables
    deadline_s, max_writes, full_clock_at_end, write_price, late_price = rules
    first, last, wanted = change
    top = full[nodes[0]]
    if wanted < 0 or wanted > top or now[first] == wanted:
        return False
    was, earliest = now[first], len(kind)
    now[first:last] = wanted
    writes = writes_of(now, top, full_clock_at_end)
    cost = state[0] + write_price * (writes - state[2])
    for p in range(first, last):
        i = nodes[p]
        cost += kind_cost[kind[i], wanted] - kind_cost[kind[i], was]
        durations[i] = kind_time[kind[i], wanted]
        earliest = min(earliest, i)
    gain = state[0] - cost + late_price * max(0.0, state[1] - deadline_s)
    if writes <= max_writes and gain > needed:
        makespan = ends_from(tables, earliest, durations, end, trial)
        if gain - late_price * max(0.0, makespan - deadline_s) > needed:
            for k in range(earliest, len(end)):
                end[k] = trial[k]
            state[0], state[1], state[2] = cost, makespan, writes
            return True
    now[first:last] = was
    for p in range(first, last):
        durations[nodes[p]] = kind_time[kind[nodes[p]], was]
    return False


# Written out, as numba takes two seconds to compile the indexing of an array by another.
@compiled("void(i8[::1], i8[::1], i8[::1])", inner=True)
def take(values: Ints, node: Ints, ordered: Ints) -> None:
    """ordered = values[node]"""
    for p in range(len(node)):
        ordered[p] = values[node[p]]


@compiled("void(i8[::1], i8[::1], i8[::1])", inner=True)
def put(ordered: Ints, node: Ints, values: Ints) -> None:
    """values[node] = ordered"""
    for p in range(len(node)):
        values[node[p]] = ordered[p]


@compiled(f"f8({TABLES}, {RULES}, f8, i8[::1], i8[::1])")
def settle(tables: Tables, rules: Rules, least: float, option: Ints, best: Ints) -> float:
    """Change run after run, rank after rank, until no change on any rank gains.

    option: (n,) where to begin; gets where this ends.
    best, least: (n,) the best that is on time so far, and its cost with the writes' price; best
        gets what is better, and its cost is returned.
    """
    rank_first, rank_node = tables[4], tables[5]
    ordered = np.empty_like(option)
    take(option, rank_node, ordered)
    durations, end, trial = np.empty(len(option)), np.empty(len(option)), np.empty(len(option))
    written, state = np.empty(len(rank_first) - 1), np.empty(3)
    begin(tables, rules, ordered, durations, end, written, state)
    r, first, move, moved, settled = 0, 0, 0, False, 0
    while settled < len(written):
        nodes = rank_node[rank_first[r] : rank_first[r + 1]]
        now = ordered[rank_first[r] : rank_first[r + 1]]
        state[2] = written[r]
        change, needed = changed(now, first, move), _GAIN * abs(state[0])
        if attempt(tables, rules, nodes, now, change, needed, durations, end, trial, state):
            written[r], moved = state[2], True
            if state[1] <= rules[0] and state[0] < least:
                least = state[0]
                put(ordered, rank_node, best)
        move += 1
        if move == 2 * (_STEPS + _SHIFTS):
            move = 0
            first += 1
            while first < len(now) and now[first] == now[first - 1]:
                first += 1
        if first == len(now):
            settled = 0 if moved else settled + 1
            r, first, moved = (r + 1) % len(written), 0, False
    put(ordered, rank_node, option)
    return least
