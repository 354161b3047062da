"""One iteration whose clock writes take time, as an event simulation; the model is landing.py's.

Events are landings, one slot per node of GPUs, and ends of computations, one slot per rank (the
last ones). The times of all slots are the leaves of a tournament tree, whose root tells the next
event; of equal times the left slot wins: landings before ends, lower numbers first.

Arrays are named as in network.py. A *level* is a rank's clock as an index into its kinds' `time`
and `cost` (kinds, W), the last of which is full clock. n computations, R ranks, G GPUs.

has: (G,) the level each GPU runs at.  queued: (G,) tickets of writes that wait, −1 for none.
writing: (N, 2) GPU and level of the write under way on each node, GPU −1 for none.
state: (R, 5), see below.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from perseusd.core.planner.compiled import compiled

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Columns of a rank's state: whether its computation has begun or is sure to begin; since when its
# GPUs have the clocks they have, or it will begin; the share done by then; what all of the
# computation takes and costs at these clocks.
RUNS, SINCE, DONE, SECONDS, COST = range(5)


@compiled("void(f8[::1], i8, f8)", inner=True)
def put(tree: Floats, slot: int, time: float) -> None:
    """Set a slot of the tournament tree: leaves are its second half, a parent its least child."""
    at = slot + len(tree) // 2
    tree[at] = time
    while at > 1:
        at //= 2
        tree[at] = min(tree[2 * at], tree[2 * at + 1])


@compiled("i8(f8[::1])", inner=True)
def first(tree: Floats) -> int:
    """The slot of least time, the leftmost of equals."""
    at, half = 1, len(tree) // 2
    while at < half:
        at *= 2
        if tree[at + 1] < tree[at]:
            at += 1
    return at - half


@compiled(
    "void(i8, i8, f8, i8[::1], i8[::1], f8[:, ::1], f8[:, ::1], f8[:, ::1], f8[::1])", inner=True
)
def expect(
    rank: int,
    kind: int,
    factor: float,
    group: Ints,
    has: Ints,
    time: Floats,
    cost: Floats,
    state: Floats,
    tree: Floats,
) -> None:
    """When a rank will end the computation it is at, with the clocks its GPUs have now."""
    slowest, total = 0.0, 0.0
    for gpu in range(rank * group[0], (rank + 1) * group[0]):
        slowest = max(slowest, time[kind, has[gpu]])
        total += cost[kind, has[gpu]]
    at = state[rank]
    at[SECONDS], at[COST] = slowest * factor, total / group[0] * factor
    slots = len(tree) // 2
    put(tree, slots - len(state) + rank, at[SINCE] + (1.0 - at[DONE]) * at[SECONDS])


@compiled("void(i8, i8, f8, i8, i8[::1], f8, i8[::1], i8[::1], i8[:, ::1], f8[::1])", inner=True)
def ask(
    rank: int,
    level: int,
    now: float,
    ticket: int,
    group: Ints,
    latency: float,
    has: Ints,
    queued: Ints,
    writing: Ints,
    tree: Floats,
) -> None:
    """A rank asks for a level: its GPUs queue with `ticket`, or are served if the node is free."""
    for gpu in range(rank * group[0], (rank + 1) * group[0]):
        node = gpu // group[1]
        will_have = writing[node, 1] if writing[node, 0] == gpu else has[gpu]
        queued[gpu] = -1
        if will_have == level:
            continue
        if writing[node, 0] < 0:
            writing[node, 0], writing[node, 1] = gpu, level
            put(tree, node, now + latency)
        else:
            queued[gpu] = ticket


@compiled("void(i8, f8, i8[::1], f8, i8[::1], i8[::1], i8[:, ::1], f8[::1])", inner=True)
def serve(
    node: int,
    now: float,
    group: Ints,
    latency: float,
    asked: Ints,
    queued: Ints,
    writing: Ints,
    tree: Floats,
) -> None:
    """Begin the node's next write: the lowest ticket, of equal ones the lowest GPU."""
    chosen = -1
    for gpu in range(node * group[1], min((node + 1) * group[1], len(queued))):
        if queued[gpu] >= 0 and (chosen < 0 or queued[gpu] < queued[chosen]):
            chosen = gpu
    writing[node, 0] = chosen
    if chosen < 0:
        put(tree, node, np.inf)
        return
    writing[node, 1] = asked[chosen // group[0]]
    queued[chosen] = -1
    put(tree, node, now + latency)


@compiled("void(i8, f8, i8[::1], i8[:, ::1], i8[::1], f8[:, ::1], f8[::1])", inner=True)
def land(
    gpu: int,
    now: float,
    group: Ints,
    writing: Ints,
    has: Ints,
    state: Floats,
    spent: Floats,
) -> None:
    """A GPU has its new clock: what its rank did at the clocks before is accounted for."""
    at = state[gpu // group[0]]
    if at[RUNS] and now > at[SINCE]:
        share = (now - at[SINCE]) / at[SECONDS]
        spent[0] += share * at[COST]
        at[DONE] += share
        at[SINCE] = now
    has[gpu] = writing[gpu // group[1], 1]


@compiled(
    "f8(i8[::1], f8[::1], i8[::1], f8, i8[::1], i8[::1], i8[::1], i8[::1], i8[::1], i8[::1],"
    "i8[::1], i8[::1], f8[::1], f8[:, ::1], f8[:, ::1], f8[::1])",
    inner=True,
)
def iteration(
    level: Ints,
    factor: Floats,
    group: Ints,
    latency: float,
    kind: Ints,
    rank: Ints,
    rank_first: Ints,
    rank_node: Ints,
    into_first: Ints,
    from_first: Ints,
    from_edge: Ints,
    head: Ints,
    lag: Floats,
    time: Floats,
    cost: Floats,
    spent: Floats,
) -> float:
    """Seconds until the last computation's end; its cost is added to spent[0].

    level: (n,).  factor: (n,) noise.  group: GPUs per rank, GPUs per node, and 1 where full clock,
    the last level, is asked for at the end.
    """
    ranks, full = len(rank_first) - 1, time.shape[1] - 1
    gpus = ranks * group[0]
    nodes = (gpus + group[1] - 1) // group[1]
    half = 1
    while half < nodes + ranks:
        half *= 2
    tree, origin = np.full(2 * half, np.inf), half - ranks
    state = np.zeros((ranks, 5))
    at, asked = rank_first[:-1].copy(), np.full(ranks, full)
    has, queued, writing = np.full(gpus, full), np.full(gpus, -1), np.full((nodes, 2), -1)
    inputs, ready = into_first[1:] - into_first[:-1], np.zeros(len(level))
    ticket, left, now = 0, len(level), 0.0
    for r in range(ranks):
        if at[r] == rank_first[r + 1]:
            continue
        node = rank_node[at[r]]
        if not group[2]:
            asked[r] = level[rank_node[rank_first[r + 1] - 1]]
            has[r * group[0] : (r + 1) * group[0]] = asked[r]
        if level[node] != asked[r]:
            asked[r] = level[node]
            ask(r, asked[r], now, ticket, group, latency, has, queued, writing, tree)
            ticket += 1
        if inputs[node] == 0:
            state[r, RUNS] = 1.0
            expect(r, kind[node], factor[node], group, has, time, cost, state, tree)
    while left:
        slot = first(tree)
        now = tree[half + slot]
        if slot < origin:
            gpu = writing[slot, 0]
            r = gpu // group[0]
            land(gpu, now, group, writing, has, state, spent)
            if state[r, RUNS]:
                node = rank_node[at[r]]
                expect(r, kind[node], factor[node], group, has, time, cost, state, tree)
            serve(slot, now, group, latency, asked, queued, writing, tree)
            continue
        r = slot - origin
        spent[0] += (1.0 - state[r, DONE]) * state[r, COST]
        state[r, RUNS] = 0.0
        put(tree, slot, np.inf)
        ended = rank_node[at[r]]
        at[r] += 1
        left -= 1
        wanted = full if group[2] else asked[r]
        if at[r] < rank_first[r + 1]:
            wanted = level[rank_node[at[r]]]
        if wanted != asked[r]:
            asked[r] = wanted
            ask(r, wanted, now, ticket, group, latency, has, queued, writing, tree)
            ticket += 1
        for k in range(from_first[ended], from_first[ended + 1]):
            node = head[from_edge[k]]
            ready[node] = max(ready[node], now + lag[from_edge[k]])
            inputs[node] -= 1
            if inputs[node] == 0:
                r = rank[node]
                state[r, RUNS], state[r, SINCE], state[r, DONE] = 1.0, ready[node], 0.0
                expect(r, kind[node], factor[node], group, has, time, cost, state, tree)
    return now


@compiled(
    "f8(i8[::1], f8[:, ::1], i8[::1], i8[::1], i8[::1], i8[::1], f8[::1], f8[:, ::1], f8[:, ::1],"
    "f8[::1])",
    inner=True,
)
def at_once(
    level: Ints,
    factor: Floats,
    kind: Ints,
    into_first: Ints,
    into_edge: Ints,
    tail: Ints,
    lag: Floats,
    time: Floats,
    cost: Floats,
    end: Floats,
) -> float:
    """The cost where writes take no time; end: (K,) when iterations then end.  factor: (K, n)."""
    finish = np.zeros(len(level))
    for s in range(len(factor)):
        for i in range(len(level)):
            start = 0.0
            for k in range(into_first[i], into_first[i + 1]):
                start = max(start, finish[tail[into_edge[k]]] + lag[into_edge[k]])
            finish[i] = start + time[kind[i], level[i]] * factor[s, i]
        end[s] = finish.max()
    total = 0.0
    for i in range(len(level)):
        total += cost[kind[i], level[i]]
    return total


@compiled("f8(f8[::1], f8[::1])", inner=True)
def weighed(end: Floats, weight: Floats) -> float:
    """Σ of (K,) ends, ascending, × their weights: a mean, or a quantile."""
    total = 0.0
    ascending = np.sort(end)
    for k in range(len(end)):
        total += ascending[k] * weight[k]
    return total


@compiled("i8(i8, i8[::1], i8[::1], i8[::1], i8, i8)", inner=True)
def written(
    rank: int, level: Ints, rank_first: Ints, rank_node: Ints, full: int, full_at_end: int
) -> int:
    """Clock writes of a rank per iteration; see runs.writes."""
    count, a, b = 0, rank_first[rank], rank_first[rank + 1]
    if a == b:
        return count
    before = full if full_at_end else level[rank_node[b - 1]]
    for k in range(a, b):
        if level[rank_node[k]] != before:
            count += 1
        before = level[rank_node[k]]
    if full_at_end and before != full:
        count += 1
    return count


@compiled(
    "void(i8[::1], i8[::1], i8[::1], i8[::1], f8[:, ::1], f8[::1], i8[:, ::1], f8[:, ::1], i8[::1],"
    "f8, i8[::1], i8[::1], i8[::1], i8[::1], i8[::1], i8[::1], i8[::1], i8[::1], i8[::1], i8[::1],"
    "f8[::1], f8[:, ::1], f8[:, ::1])"
)
def outcomes(
    level: Ints,
    change_first: Ints,
    change_node: Ints,
    change_level: Ints,
    end: Floats,
    spent: Floats,
    writes: Ints,
    factor: Floats,
    group: Ints,
    latency: float,
    kind: Ints,
    rank: Ints,
    rank_first: Ints,
    rank_node: Ints,
    into_first: Ints,
    into_edge: Ints,
    from_first: Ints,
    from_edge: Ints,
    tail: Ints,
    head: Ints,
    lag: Floats,
    time: Floats,
    cost: Floats,
) -> None:
    """What (n,) levels do after each of m changes, in the model and with writes that take no time.

    change_*: change c puts change_node[change_first[c] : change_first[c + 1]] at change_level.
    factor: (K, n).  end: (m, K), the later of both models.  spent: (m,) mean cost, the greater.
    writes: (m, 2) of all ranks together, and of the rank that writes most.
    """
    total = np.zeros(1)
    for c in range(len(change_first) - 1):
        changed = level.copy()
        for k in range(change_first[c], change_first[c + 1]):
            changed[change_node[k]] = change_level[k]
        least = at_once(
            changed, factor, kind, into_first, into_edge, tail, lag, time, cost, end[c]
        )  # fmt: skip
        total[0] = 0.0
        for s in range(len(factor)):
            late = iteration(
                changed, factor[s], group, latency, kind, rank, rank_first, rank_node, into_first,
                from_first, from_edge, head, lag, time, cost, total,
            )  # fmt: skip
            end[c, s] = max(late, end[c, s])
        spent[c] = max(total[0] / len(factor), least)
        writes[c] = 0
        for r in range(len(rank_first) - 1):
            count = written(r, changed, rank_first, rank_node, time.shape[1] - 1, group[2])
            writes[c, 0] += count
            writes[c, 1] = max(writes[c, 1], count)


@compiled(
    "i8(i8[::1], i8[:, ::1], f8[::1], i8[:, ::1], f8[::1], f8[::1], f8[:, ::1], i8[::1], f8,"
    "i8[::1], i8[::1], i8[::1], i8[::1], i8[::1], i8[::1], i8[::1], i8[::1], i8[::1], i8[::1],"
    "f8[::1], f8[:, ::1], f8[:, ::1])"
)
def sweep(
    level: Ints,
    moves: Ints,
    gain: Floats,
    real: Ints,
    terms: Floats,
    weight: Floats,
    factor: Floats,
    group: Ints,
    latency: float,
    kind: Ints,
    rank: Ints,
    rank_first: Ints,
    rank_node: Ints,
    into_first: Ints,
    into_edge: Ints,
    from_first: Ints,
    from_edge: Ints,
    tail: Ints,
    head: Ints,
    lag: Floats,
    time: Floats,
    cost: Floats,
) -> int:
    """Make those of the moves that gain, one after another, on (n,) levels. How many were made.

    moves: (m, 4) rank, first and end position, level.  gain: (m,) what each gains, 0 where it does
    not.  real: (kinds, W) the level that a kind takes for a level.  terms: the value to beat, which
    is updated; the deadline; what a second beyond it costs; what a write costs; the most writes of
    a rank; the least gain; 0 to try moves only, each for itself.  weight: see weighed.
    """
    made, full, samples = 0, time.shape[1] - 1, len(factor)
    before, end, total = level.copy(), np.empty(samples), np.zeros(1)
    writes_now = 0
    for r in range(len(rank_first) - 1):
        writes_now += written(r, level, rank_first, rank_node, full, group[2])
    for m in range(len(moves)):
        r = moves[m, 0]
        a, b = rank_first[r] + moves[m, 1], rank_first[r] + moves[m, 2]
        had = written(r, level, rank_first, rank_node, full, group[2])
        for k in range(a, b):
            before[k] = level[rank_node[k]]
            level[rank_node[k]] = real[kind[rank_node[k]], moves[m, 3]]
        has = written(r, level, rank_first, rank_node, full, group[2])
        value = np.inf
        if has <= max(had, terms[4]):
            # Writes that take no time end no later and cost no more: most moves fail by that.
            least = at_once(level, factor, kind, into_first, into_edge, tail, lag, time, cost, end)
            others = terms[3] * (writes_now + has - had)
            value = least + others + terms[2] * max(0.0, weighed(end, weight) - terms[1])
            if value < terms[0] - terms[5]:
                total[0] = 0.0
                for s in range(samples):
                    late = iteration(
                        level, factor[s], group, latency, kind, rank, rank_first, rank_node,
                        into_first, from_first, from_edge, head, lag, time, cost, total,
                    )  # fmt: skip
                    end[s] = max(late, end[s])
                value = max(total[0] / samples, least) + others
                value += terms[2] * max(0.0, weighed(end, weight) - terms[1])
        gain[m] = terms[0] - value if value < terms[0] - terms[5] else 0.0
        if gain[m] > 0.0 and terms[6] > 0.0:
            terms[0] = value
            writes_now += has - had
            made += 1
        else:
            for k in range(a, b):
                level[rank_node[k]] = before[k]
    return made
