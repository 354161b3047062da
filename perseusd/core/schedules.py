"""Orders of instructions on each rank, and the dependencies that follow from any order.

A pipeline of p ranks with c chunks each has V = p·c *virtual stages*. Dependencies between virtual
stage v and its neighbours for one microbatch m (the order on a rank comes on top):

    forward(v, m)        → forward(v + 1, m)
    forward(V − 1, m)    → gradient(V − 1, m)
    gradient(v + 1, m)   → gradient(v, m)
    input_gradient(v, m) → weight_gradient(v, m)

where *gradient* is the computation that yields the gradient passed upstream: `backward`, or
`input_gradient` where the backward is split. A schedule decides the order alone, so the same rules
serve 1F1B, GPipe, interleaved and zero-bubble schedules, known or observed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

from perseusd.core.model import Computation, Edge, Pipeline
from perseusd.errors import PlanningError

Orders = Sequence[Sequence[Computation]]
Lag = Callable[[Computation, Computation], float]
_Found = dict[tuple[int, str, int], Computation]  # by virtual stage, instruction, microbatch

_GRADIENTS = ("backward", "input_gradient")
_STAGED = frozenset({"forward", "recompute", "weight_gradient", *_GRADIENTS})
_UNSTAGED = frozenset({"iteration", "other"})


def one_f_one_b(stages: int, microbatches: int) -> tuple[tuple[Computation, ...], ...]:
    """1F1B: min(p − s − 1, M) forwards, then forward and backward in turn, then the backwards."""
    _check_size(stages, microbatches)
    return tuple(
        tuple(_one_f_one_b_rank(s, min(stages - s - 1, microbatches), microbatches))
        for s in range(stages)
    )


def gpipe(stages: int, microbatches: int) -> tuple[tuple[Computation, ...], ...]:
    """GPipe: all forwards, then all backwards, both in order of microbatch."""
    _check_size(stages, microbatches)
    return tuple(
        tuple(
            Computation(s, 0, instruction, m)
            for instruction in ("forward", "backward")
            for m in range(microbatches)
        )
        for s in range(stages)
    )


def pipeline(orders: Orders, lag_s: float | Lag = 0.0) -> Pipeline:
    """The pipeline that runs `orders`: dependencies derived by the rules at the head of this file.

    orders: per rank, its computations in execution order, known or observed.
    lag_s: communication time between dependent computations on different ranks, one for all or
        by (before, after).
    Raises PlanningError, naming what is missing or misplaced, when the orders are no pipeline.
    A job of `iteration` and `other` alone has no dependencies between ranks.
    """
    frozen = tuple(tuple(order) for order in orders)
    place = _places(frozen)
    staged = [c for c in place if c.instruction in _STAGED]
    if not staged:
        return Pipeline(frozen, ())
    _check_unmixed(place)
    lag = lag_s if callable(lag_s) else _constant(lag_s)
    edges = tuple(_cross_edges(_dependencies(staged, len(frozen)), place, lag))
    return Pipeline(frozen, edges)


def virtual_stage(computation: Computation, ranks: int) -> int:
    """Chunks are laid out round the ranks: chunk 0 of every rank first, then chunk 1."""
    return computation.chunk * ranks + computation.rank


def _one_f_one_b_rank(rank: int, warmup: int, microbatches: int) -> Iterator[Computation]:
    for m in range(warmup):
        yield Computation(rank, 0, "forward", m)
    for m in range(microbatches - warmup):
        yield Computation(rank, 0, "forward", m + warmup)
        yield Computation(rank, 0, "backward", m)
    for m in range(microbatches - warmup, microbatches):
        yield Computation(rank, 0, "backward", m)


def _check_size(stages: int, microbatches: int) -> None:
    for name, value in (("stages", stages), ("microbatches", microbatches)):
        if value < 1:
            raise PlanningError(f"{name} is {value}: a schedule needs at least 1")


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
    staged: Sequence[Computation], ranks: int
) -> Iterator[tuple[Computation, Computation]]:
    """Every (before, after) that the rules ask for, same-rank ones included."""
    stages = ranks * (1 + max(c.chunk for c in staged))
    found = {(virtual_stage(c, ranks), c.instruction, c.microbatch): c for c in staged}
    for m in sorted({c.microbatch for c in staged}):
        forwards = [_need(found, v, ("forward",), m, ranks) for v in range(stages)]
        gradients = [_need(found, v, _GRADIENTS, m, ranks) for v in range(stages)]
        yield from itertools.pairwise(forwards)
        yield from zip(forwards, gradients, strict=True)
        yield from zip(gradients[1:], gradients, strict=False)
        for v, gradient in enumerate(gradients):
            yield from _local_dependencies(found, v, gradient)


def _local_dependencies(
    found: _Found, stage: int, gradient: Computation
) -> Iterator[tuple[Computation, Computation]]:
    """Recompute before the gradient that needs it; weight gradient after the input gradient."""
    if recompute := found.get((stage, "recompute", gradient.microbatch)):
        yield recompute, gradient
    if weight := found.get((stage, "weight_gradient", gradient.microbatch)):
        yield gradient, weight


def _need(
    found: _Found, stage: int, instructions: tuple[str, ...], microbatch: int, ranks: int
) -> Computation:
    for instruction in instructions:
        if computation := found.get((stage, instruction, microbatch)):
            return computation
    wanted = " or ".join(instructions)
    chunk, rank = divmod(stage, ranks)
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
