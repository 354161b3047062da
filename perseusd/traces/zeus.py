"""Plans in the format of Zeus's pipeline frequency optimizer (its server's PointSolution).

A Python file, name ending in .py, that holds one expression: a list with an item for each stage,
which lists (instruction, clock in MHz) pairs in execution order. Lines that begin with # say more.
docs/plan.md tells where this is written down.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

ZEUS_NAMES = frozenset({"forward", "backward"})
"""The instructions that Zeus's own integrations report; others need a client that reports them."""


def zeus_plan(ranks: Iterable[Sequence[tuple[str, int]]], notes: Iterable[str] = ()) -> str:
    """The file's text.

    ranks: per rank, (instruction, clock in MHz) in execution order.
    notes: lines for the comments at the end, where lowtime writes its own.
    """
    return "\n".join(_lines(ranks, notes)) + "\n"


def _lines(ranks: Iterable[Sequence[tuple[str, int]]], notes: Iterable[str]) -> Iterator[str]:
    yield "["
    for rank in ranks:
        yield f"{[(str(instruction), int(clock)) for instruction, clock in rank]},"
    yield "]"
    for note in notes:
        yield "# " + " ".join(note.split())
