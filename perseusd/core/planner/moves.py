"""Small changes of a plan: what the local search may do in one step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from perseusd.core.planner.instance import Instance
from perseusd.core.planner.runs import spans, writes

Ints = NDArray[np.intp]

_STEPS = (-4, -3, -2, -1, 1, 2, 3, 4)  # options a run goes up or down at once
_SHIFTS = (1, 2, 3)  # positions a border between runs moves at once


@dataclass(frozen=True)
class Move:
    """Put `nodes` at `option`, (members,) each, for `writes` more clock writes on `scope`.

    Moves of different scopes may be made together: a rank, or a computation where all are free.
    """

    scope: int
    nodes: Ints
    option: Ints
    writes: int


def free_moves(inst: Instance, option: Ints) -> list[Move]:
    """Every computation a few options up or down."""
    return [
        Move(node, np.array([node]), np.array([now + step]), 0)
        for node, (now, full) in enumerate(zip(option.tolist(), inst.full.tolist(), strict=True))
        for step in _STEPS
        if 0 <= now + step <= full
    ]


def run_moves(inst: Instance, option: Ints, max_writes: int) -> list[Move]:
    """Every run a few options up or down, every border a few positions either way, and splits.

    None makes more than `max_writes` writes on its rank.
    """
    found = []
    for rank, nodes in enumerate(inst.graph.order):
        now, full = option[nodes].tolist(), int(inst.full[nodes[0]])
        at_end = inst.problem.full_clock_at_end
        before = writes(now, full, full_clock_at_end=at_end)
        changes = [*_changes(now, full)]
        if before < max_writes:
            changes += _splits(now, full)
        for first, end, value in changes:
            after = writes(
                [*now[:first], *([value] * (end - first)), *now[end:]],
                full,
                full_clock_at_end=at_end,
            )
            if after <= max_writes:
                same = np.full(end - first, value, dtype=np.intp)
                found.append(Move(rank, nodes[first:end], same, after - before))
    return found


def _changes(option: Sequence[int], full: int) -> Iterator[tuple[int, int, int]]:
    """(first, end, new option) within one rank."""
    runs = spans(option)
    for first, end in runs:
        for step in _STEPS:
            if 0 <= option[first] + step <= full:
                yield first, end, option[first] + step
        if option[first] + _STEPS[-1] < full:
            yield first, end, full
    for (first, border), (_, end) in pairwise(runs):
        for shift in _SHIFTS:
            yield border, min(border + shift, end), option[first]
            yield max(border - shift, first), border, option[border]


def _splits(option: Sequence[int], full: int) -> Iterator[tuple[int, int, int]]:
    """(first, end, new option): a run's beginning or end gets a clock of its own."""
    for first, end in spans(option):
        length = 1
        while length < end - first:
            for step in _STEPS:
                if 0 <= option[first] + step <= full:
                    yield first, first + length, option[first] + step
                    yield end - length, end, option[first] + step
            length *= 2
