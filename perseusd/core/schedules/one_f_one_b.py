"""1F1B (PipeDream-flush, Narayanan et al., 2021) and the two schedules that only refine it.

Rank s of p runs w = min(p − s − 1, M) forwards ahead, then one forward and one backward in turn,
and last the w backwards that are left: at most p − s microbatches are in flight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from perseusd.core.model import Computation
from perseusd.core.schedules.size import check_size

_Backward = Callable[[int, int], Iterator[Computation]]


def one_f_one_b(stages: int, microbatches: int) -> tuple[tuple[Computation, ...], ...]:
    """1F1B with whole backwards."""

    def backward(rank: int, m: int) -> Iterator[Computation]:
        yield Computation(rank, 0, "backward", m)

    return _orders(stages, microbatches, backward)


def early_recompute_one_f_one_b(
    stages: int, microbatches: int
) -> tuple[tuple[Computation, ...], ...]:
    """1F1B in which activations are computed anew right before each backward.

    Recomputing needs nothing from the next stage, so it is done while the gradient is awaited
    (Merak, Lai et al., 2023).
    """

    def backward(rank: int, m: int) -> Iterator[Computation]:
        yield Computation(rank, 0, "recompute", m)
        yield Computation(rank, 0, "backward", m)

    return _orders(stages, microbatches, backward)


def zb_h1(stages: int, microbatches: int) -> tuple[tuple[Computation, ...], ...]:
    """ZB-H1 (Qi et al., Zero Bubble Pipeline Parallelism, 2023), the handcrafted order.

    1F1B with backwards split: the input gradient goes upstream at once, and rank s runs its weight
    gradients s microbatches late, so that they fill the bubbles at the iteration's end. Every
    rank then holds the activations of at most p microbatches, as 1F1B's first does.
    """

    def backward(rank: int, m: int) -> Iterator[Computation]:
        yield Computation(rank, 0, "input_gradient", m)
        if m >= rank:
            yield Computation(rank, 0, "weight_gradient", m - rank)
        if m == microbatches - 1:
            for late in range(max(microbatches - rank, 0), microbatches):
                yield Computation(rank, 0, "weight_gradient", late)

    return _orders(stages, microbatches, backward)


def _orders(
    stages: int, microbatches: int, backward: _Backward
) -> tuple[tuple[Computation, ...], ...]:
    check_size(stages=stages, microbatches=microbatches)
    return tuple(
        tuple(_rank_order(s, min(stages - s - 1, microbatches), microbatches, backward))
        for s in range(stages)
    )


def _rank_order(
    rank: int, warmup: int, microbatches: int, backward: _Backward
) -> Iterator[Computation]:
    for m in range(warmup):
        yield Computation(rank, 0, "forward", m)
    for m in range(microbatches):
        if m + warmup < microbatches:
            yield Computation(rank, 0, "forward", m + warmup)
        yield from backward(rank, m)
