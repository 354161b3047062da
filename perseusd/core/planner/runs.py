"""Runs of one clock on a rank, and the clock writes between them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from perseusd.core.model import Plan


def spans(values: Sequence[object]) -> list[tuple[int, int]]:
    """(first, end) of every run of equal neighbours."""
    found, first = [], 0
    for _, run in groupby(values):
        end = first + sum(1 for _ in run)
        found.append((first, end))
        first = end
    return found


def writes(values: Sequence[object], full: object, *, full_clock_at_end: bool) -> int:
    """Clock writes of one rank in one iteration, which recurs: see Problem.max_writes.

    values: the clock, or option, of every computation in order.  full: what stands for full clock.
    """
    inside = sum(1 for _ in groupby(values)) - 1
    if full_clock_at_end:
        return inside + int(values[0] != full) + int(values[-1] != full)
    return inside + int(values[0] != values[-1])


def plan_writes(plan: Plan, *, full_clock_at_end: bool) -> tuple[int, ...]:
    """Clock writes of every rank per iteration."""
    return tuple(
        writes(clocks, None, full_clock_at_end=full_clock_at_end) for clocks in plan.clocks
    )
