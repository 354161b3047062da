"""Orders as text: one line a rank, its computations in execution order.

    # two ranks, V-shaped; anything after # is ignored, and so are empty lines
    0F0 0F1 3F0 3I0 3W0 3F1 0B0 3B1 0B1
    1F0 2F0 1F1 2F1 2B0 1B0 2B1 1B1

The notation is torch's (`torch.distributed.pipelining`): virtual stage, action, microbatch.

    F forward, B backward, I input gradient, W weight gradient, and ours: R recompute

The virtual stage may be left out where each rank has one: `F0` on the second line is `1F0`. Which
chunk a virtual stage is follows from the layout, which follows from who runs it. Separators are
spaces or commas, and the brackets of a printed list are ignored, so that what torch prints or dumps
as CSV can be read as it is: its `None`, communication and sharding are no computations and left
out, and `(0F4;7B1)OVERLAP_F_B` counts as one after the other, as torch itself runs it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from perseusd.core.model import Computation
from perseusd.core.schedules.layout import Layout, home
from perseusd.errors import PlanningError

_INSTRUCTIONS = {
    "F": "forward",
    "B": "backward",
    "I": "input_gradient",
    "W": "weight_gradient",
    "R": "recompute",
}
_COMPUTATION = re.compile(r"([0-9]*)([FBIWR])([0-9]+)")
_OVERLAP = re.compile(r"\(([^()]*)\)OVERLAP_F_B")
_IGNORED = re.compile(r"None|[0-9]+((SEND|RECV)_[FB][0-9]+|UNSHARD|RESHARD|REDUCE_GRAD)")
_SEPARATORS = re.compile(r"[\s,\[\]]+")


class _Action(NamedTuple):
    line: int
    token: str
    rank: int
    stage: int
    instruction: str
    microbatch: int


class WrittenOrders(NamedTuple):
    """What a text tells: who runs what in which order, and so where virtual stages are."""

    orders: tuple[tuple[Computation, ...], ...]
    layout: Layout


def orders_from_text(text: str) -> tuple[tuple[Computation, ...], ...]:
    """The orders alone of `read_orders`."""
    return read_orders(text).orders


def read_orders(text: str) -> WrittenOrders:
    """What `text` tells, in the format at the head of this file.

    Raises PlanningError with line and token for what cannot be read, and for a virtual stage that
    its rank holds in no layout. Whether the orders make a pipeline, `pipeline` tells.
    """
    lines = [(n, line.partition("#")[0]) for n, line in enumerate(text.splitlines(), start=1)]
    told = [(n, tokens) for n, line in lines if (tokens := _tokens(line))]
    if not told:
        raise PlanningError("the text names no computations: one line a rank, such as F0 F1 B0 B1")
    actions = [
        [a for t in tokens for a in _actions(n, t, rank)] for rank, (n, tokens) in enumerate(told)
    ]
    layout = _layout(actions)
    return WrittenOrders(
        tuple(tuple(_computation(a, len(actions), layout) for a in own) for own in actions), layout
    )


def _tokens(line: str) -> list[str]:
    return [token for token in _SEPARATORS.split(line) if token]


def _actions(line: int, token: str, rank: int) -> Iterator[_Action]:
    if _IGNORED.fullmatch(token):
        return
    overlap = _OVERLAP.fullmatch(token)
    for part in overlap[1].split(";") if overlap else [token]:
        match = _COMPUTATION.fullmatch(part)
        if match is None:
            raise PlanningError(
                f"line {line}: {token!r} is no computation: write a virtual stage (or none), "
                "one of F B I W R, and a microbatch, such as F0 or 2F0"
            )
        stage, letter, microbatch = match.groups()
        own = int(stage) if stage else rank
        yield _Action(line, token, rank, own, _INSTRUCTIONS[letter], int(microbatch))


def _layout(actions: Sequence[Sequence[_Action]]) -> Layout:
    """The layout in which every virtual stage is on the rank that runs it."""
    ranks = len(actions)
    layouts: tuple[Layout, ...] = ("looped", "v")
    for action in itertools.chain.from_iterable(actions):
        homes = {one: home(action.stage, ranks, one)[0] for one in layouts}
        layouts = tuple(one for one in layouts if homes[one] == action.rank)
        if not layouts:
            holders = " or ".join(map(str, sorted(set(homes.values()))))
            raise PlanningError(
                f"line {action.line}: {action.token!r} is on rank {action.rank}, but of {ranks} "
                f"ranks it is {holders} that holds virtual stage {action.stage}: every line that "
                "is not empty is one rank"
            )
    return layouts[0]


def _computation(action: _Action, ranks: int, layout: Layout) -> Computation:
    _, chunk = home(action.stage, ranks, layout)
    return Computation(action.rank, chunk, action.instruction, action.microbatch)
