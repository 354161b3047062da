"""Small random changes of a plan made of runs: what the local search tries, one after another.

Options are held by *slot*: rank after rank, in execution order. Every change is written to a log
of slots and the options they had, so that it can be taken back.

RUNS: option (n,) by slot; rank_first (R + 1,), the slots of each rank; node (n,) and kind (n,) of
    each slot; full (R,), the option which is full clock; time, cost (kinds, C); log_slot,
    log_option.
random: (1,) state of the generator (xorshift64*, Vigna 2016).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from perseusd.core.planner.compiled import compiled

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
State = NDArray[np.uint64]
Runs = tuple[Ints, Ints, Ints, Ints, Ints, Floats, Floats, Ints, Ints]

RUNS = (
    "Tuple((i8[::1], i8[::1], i8[::1], i8[::1], i8[::1], f8[:, ::1], f8[:, ::1], i8[::1], i8[::1]))"
)
# Of so many changes, how many shift a border, change a run's clock, split a run, merge two; the
# rest shift a whole run.
KINDS = 16
_SHIFT, _CLOCK, _SPLIT, _MERGE = 6, 6, 2, 1
FIRST_SPLIT = _SHIFT + _CLOCK
FIRST_MERGE = FIRST_SPLIT + _SPLIT
_STEPS = 4  # options a run goes up or down at once, at most
_POSITIONS = 4  # that a border moves at once, at most


@compiled("i8(u8[::1], i8)", inner=True)
def below(random: State, count: int) -> int:
    """A random integer ≥ 0 and < count."""
    x = random[0]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    random[0] = x
    high = (x * np.uint64(2685821657736338717)) >> np.uint64(33)
    return int((high * np.uint64(count)) >> np.uint64(31))


@compiled("i8(i8[::1], i8, i8, i8, i8)", inner=True)
def written(option: Ints, first: int, end: int, full: int, at_end: int) -> int:
    """Clock writes of the rank with slots first … end − 1; see runs.writes."""
    count = 0
    for slot in range(first + 1, end):
        count += int(option[slot] != option[slot - 1])
    if at_end:
        return count + int(option[first] != full) + int(option[end - 1] != full)
    return count + int(option[first] != option[end - 1])


@compiled(f"i8({RUNS}, i8, i8, i8, i8)", inner=True)
def _put(runs: Runs, logged: int, first: int, end: int, value: int) -> int:
    option, log_slot, log_option = runs[0], runs[7], runs[8]
    for slot in range(first, end):
        if option[slot] != value:
            log_slot[logged], log_option[logged] = slot, option[slot]
            option[slot] = value
            logged += 1
    return logged


@compiled(f"void({RUNS}, i8)", inner=True)
def take_back(runs: Runs, logged: int) -> None:
    """Undo the first `logged` changes of the log."""
    option, log_slot, log_option = runs[0], runs[7], runs[8]
    for at in range(logged - 1, -1, -1):
        option[log_slot[at]] = log_option[at]


@compiled(f"i8({RUNS}, u8[::1], i8, i8, i8, i8)", inner=True)
def change(runs: Runs, random: State, rank: int, at_end: int, what: int, logged: int) -> int:
    """Change something small on a rank (`what` < KINDS); how long the log is afterwards."""
    option, full = runs[0], runs[4][rank]
    begin, finish = runs[1][rank], runs[1][rank + 1]
    borders = 0
    for slot in range(begin + 1, finish):
        borders += option[slot] != option[slot - 1]
    # the run from `first` to `end`, the picked-th of the rank
    picked = below(random, borders + 1)
    first, end = begin, begin + 1
    while end < finish and (picked > 0 or option[end] == option[end - 1]):
        if option[end] != option[end - 1]:
            picked -= 1
            first = end
        end += 1
    now = option[first]
    step = 1 + below(random, _STEPS)
    if step > 1:
        step = 1 + below(random, step)
    value = now + step if below(random, 2) else now - step
    value = min(max(value, 0), full)
    by = 1 + below(random, 1 + below(random, _POSITIONS))
    left = below(random, 2) == 1
    inner_left, inner_right = first > begin, end < finish
    # What it does: two stretches of slots get an option each; an empty one is none.
    first_a, end_a, value_a = first, first, value
    first_b, end_b, value_b = first, first, value
    if what < _SHIFT:
        grow = below(random, 2) == 1
        if left and inner_left:
            first_a = max(first - by, begin) if grow else first
            end_a = first if grow else min(first + by, end)
            value_a = now if grow else option[first - 1]
        elif inner_right:
            first_a = end if grow else max(end - by, first)
            end_a = min(end + by, finish) if grow else end
            value_a = now if grow else option[end]
    elif what < FIRST_SPLIT:
        end_a = end
        if not at_end and borders:  # the first and the last run may be one
            if not inner_left and option[finish - 1] == now:
                first_b = end_b = finish
                while option[first_b - 1] == now:
                    first_b -= 1
            elif not inner_right and option[begin] == now:
                first_b = end_b = begin
                while option[end_b] == now:
                    end_b += 1
    elif what < FIRST_MERGE:
        length = 1 + below(random, end - first)
        first_a = first + below(random, end - first - length + 1)
        if below(random, 3):  # mostly at an end of the run, which takes one write
            first_a = first if left else end - length
        end_a = first_a + length
    elif what < FIRST_MERGE + _MERGE:
        if inner_right or (left and inner_left):
            end_a = end
            value_a = option[first - 1] if left and inner_left else option[end]
    elif inner_left and inner_right:
        if left:
            first_a, end_a, value_a = max(end - by, first), end, option[end]
            first_b, end_b, value_b = max(first - by, begin), first, now
        else:
            first_a, end_a, value_a = first, min(first + by, end), option[first - 1]
            first_b, end_b, value_b = end, min(end + by, finish), now
    logged = _put(runs, logged, first_a, end_a, value_a)
    return _put(runs, logged, first_b, end_b, value_b)
