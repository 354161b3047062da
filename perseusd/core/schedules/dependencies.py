"""The dependencies that follow from any order, and whether ranks that keep to both can run.

A pipeline of p ranks with c chunks each has V = p·c *virtual stages*. Dependencies between virtual
stage v and its neighbours for one microbatch m (the order on a rank comes on top):

    forward(v, m)        → forward(v + 1, m)
    forward(V − 1, m)    → gradient(V − 1, m)
    gradient(v + 1, m)   → gradient(v, m)
    forward(v, m)        → recompute(v, m) → gradient(v, m)
    input_gradient(v, m) → weight_gradient(v, m)

where *gradient* is the computation that yields the gradient passed upstream: `backward`, or
`input_gradient` where the backward is split; a schedule may split some microbatches' only.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from perseusd.core.graph import Graph
from perseusd.core.model import Computation, Edge, Pipeline
from perseusd.core.schedules.layout import Layout, home, likeliest, virtual_stage
from perseusd.errors import PlanningError

Orders = Sequence[Sequence[Computation]]
Lag = Callable[[Computation, Computation], float]
_Found = dict[tuple[int, str, int], Computation]  # by virtual stage, instruction, microbatch

_GRADIENTS = ("backward", "input_gradient")
_STAGED = frozenset({"forward", "recompute", "weight_gradient", *_GRADIENTS})
_UNSTAGED = frozenset({"iteration", "other"})


def pipeline(
    orders: Orders,
    lag_s: float | Lag = 0.0,
    layout: Layout | None = None,
    schedule: str | None = None,
) -> Pipeline:
    """The pipeline that runs `orders`: dependencies derived by the rules at the head of this file.

    orders: per rank, its computations in execution order, known or observed.
    lag_s: communication time between dependent computations on different ranks, one for all or
        by (before, after).
    layout: where virtual stages are; None: the likeliest under which the orders can run.
    schedule: the order's name as somebody declared it, which says what is likely.
    Raises PlanningError, naming what is missing, misplaced or waits for ever, when the orders are
    no pipeline. A job of `iteration` and `other` alone has no dependencies between ranks.
    """
    return next(pipelines(orders, lag_s, layout, schedule))


def pipelines(
    orders: Orders,
    lag_s: float | Lag = 0.0,
    layout: Layout | None = None,
    schedule: str | None = None,
) -> Iterator[Pipeline]:
    """Every pipeline that `orders` can be, likeliest first: one for each layout that can run.

    At least one: raises PlanningError, about the likeliest, where there is none.
    """
    frozen = tuple(tuple(order) for order in orders)
    place = _places(frozen)
    staged = [c for c in place if c.instruction in _STAGED]
    if not staged:
        yield Pipeline(frozen, ())
        return
    _check_unmixed(place)
    chunks = 1 + max(c.chunk for c in staged)
    lag = lag_s if callable(lag_s) else _constant(lag_s)
    refusals: list[PlanningError] = []
    considered = likeliest(chunks, len(frozen), schedule) if layout is None else (layout,)
    for one in considered:
        try:
            dependencies = _dependencies(staged, len(frozen), one)
            built = Pipeline(frozen, tuple(_cross_edges(dependencies, place, lag)))
            if not can_run(built):
                Graph.from_pipeline(built)  # raises, naming the cycle
        except PlanningError as error:
            refusals.append(error)
        else:
            yield built
    if len(refusals) == len(considered):
        raise refusals[0]


def can_run(built: Pipeline) -> bool:
    """Whether ranks that keep their orders, and wait for what the edges name, all reach the end."""
    awaited = Counter(edge.after for edge in built.edges)
    followers: dict[Computation, list[Computation]] = defaultdict(list)
    for edge in built.edges:
        followers[edge.before].append(edge.after)
    done = [0] * built.ranks
    free = list(range(built.ranks))
    while free:
        rank = free.pop()
        order = built.orders[rank]
        while done[rank] < len(order) and not awaited[order[done[rank]]]:
            for after in followers[order[done[rank]]]:
                awaited[after] -= 1
                if not awaited[after]:
                    free.append(after.rank)
            done[rank] += 1
    return done == [len(order) for order in built.orders]


def _places(orders: Orders) -> dict[Computation, int]:
    """Each computation's position on its rank; raises where orders are not well-formed."""
    place: dict[Computation, int] = {}
    for rank, order in enumerate(orders):
        if not order:
            raise PlanningError(f"rank {rank} has no computations: every rank must have an order")
        for position, computation in enumerate(order):
            if computation.rank != rank:
                raise PlanningError(f"{_name(computation)} is in the order of rank {rank}")
            if computation.instruction not in _STAGED | _UNSTAGED:
                known = ", ".join(sorted(_STAGED | _UNSTAGED))
                raise PlanningError(f"{_name(computation)}: unknown instruction, known are {known}")
            if computation in place:
                raise PlanningError(f"{_name(computation)} is twice in its rank's order")
            place[computation] = position
    return place


def _check_unmixed(place: Iterable[Computation]) -> None:
    whole = next((c for c in place if c.instruction == "iteration"), None)
    if whole is not None:
        raise PlanningError(
            f"{_name(whole)} is mixed with forward or backward: name either whole iterations "
            "or the computations of a pipeline, not both"
        )


def _dependencies(
    staged: Sequence[Computation], ranks: int, layout: Layout
) -> Iterator[tuple[Computation, Computation]]:
    """Every (before, after) that the rules ask for, same-rank ones included."""
    stages = ranks * (1 + max(c.chunk for c in staged))
    found = {(virtual_stage(c, ranks, layout), c.instruction, c.microbatch): c for c in staged}
    for m in sorted({c.microbatch for c in staged}):
        forwards = [_need(found, v, ("forward",), m, ranks, layout) for v in range(stages)]
        gradients = [_need(found, v, _GRADIENTS, m, ranks, layout) for v in range(stages)]
        yield from itertools.pairwise(forwards)
        yield from zip(forwards, gradients, strict=True)
        yield from zip(gradients[1:], gradients, strict=False)
        for v, (forward, gradient) in enumerate(zip(forwards, gradients, strict=True)):
            yield from _local_dependencies(found, v, forward, gradient)


def _local_dependencies(
    found: _Found, stage: int, forward: Computation, gradient: Computation
) -> Iterator[tuple[Computation, Computation]]:
    """Recompute between forward and gradient; weight gradient after the input gradient."""
    if recompute := found.get((stage, "recompute", gradient.microbatch)):
        yield forward, recompute
        yield recompute, gradient
    if weight := found.get((stage, "weight_gradient", gradient.microbatch)):
        yield gradient, weight


def _need(
    found: _Found,
    stage: int,
    instructions: tuple[str, ...],
    microbatch: int,
    ranks: int,
    layout: Layout,
) -> Computation:
    """The one of `instructions` that there is at this virtual stage; there must be just one."""
    own = [c for i in instructions if (c := found.get((stage, i, microbatch)))]
    if len(own) == 1:
        return own[0]
    rank, chunk = home(stage, ranks, layout)
    if own:
        both = " and ".join(c.instruction for c in own)
        raise PlanningError(
            f"microbatch {microbatch} has both {both} on rank {rank}, chunk {chunk}: "
            "a backward is either whole or split"
        )
    wanted = " or ".join(instructions)
    raise PlanningError(
        f"{wanted} of microbatch {microbatch} is missing on rank {rank}, chunk {chunk}: "
        "every microbatch must pass every stage forward and backward"
    )


def _cross_edges(
    dependencies: Iterable[tuple[Computation, Computation]],
    place: dict[Computation, int],
    lag: Lag,
) -> Iterator[Edge]:
    """Edges between ranks; those on one rank are implied by its order, which must agree."""
    for before, after in dependencies:
        if before.rank != after.rank:
            yield Edge(before, after, lag(before, after))
        elif place[before] > place[after]:
            raise PlanningError(
                f"{_name(after)} comes before {_name(before)}, which it depends on: "
                "check the order in which the rank's instructions are named"
            )


def _constant(value: float) -> Lag:
    return lambda before, after: value


def _name(computation: Computation) -> str:
    return (
        f"{computation.instruction} of microbatch {computation.microbatch} "
        f"on rank {computation.rank}, chunk {computation.chunk}"
    )
