"""Interleaved 1F1B (Narayanan et al., SC 2021): each rank holds several chunks of the model.

Microbatches go in groups of at least p. A rank's n-th forward is chunk (n ÷ group) mod chunks, and
its n-th backward the same counted from the last chunk. Rank s runs 2(p − s − 1) +
(chunks − 1)·group forwards ahead, at most all of them, then forward and backward in turn.
"""

from __future__ import annotations

from collections.abc import Iterator

from perseusd.core.model import Computation
from perseusd.core.schedules.size import check_size
from perseusd.errors import PlanningError


def interleaved_one_f_one_b(
    stages: int, microbatches: int, chunks: int
) -> tuple[tuple[Computation, ...], ...]:
    """Megatron's order where stages divide microbatches, and torch's wherever groups are equal.

    Raises PlanningError for fewer than two chunks, and where microbatches cannot be split into
    M ÷ p (rounded down) equal groups.
    """
    check_size(stages=stages, microbatches=microbatches, chunks=chunks)
    if chunks < 2:
        raise PlanningError("interleaved-1f1b needs at least 2 chunks per rank; with 1 use 1f1b")
    group = _group(stages, microbatches)
    total = chunks * microbatches
    return tuple(
        tuple(
            _rank_order(
                s, min(2 * (stages - s - 1) + (chunks - 1) * group, total), group, chunks, total
            )
        )
        for s in range(stages)
    )


def _group(stages: int, microbatches: int) -> int:
    groups = max(1, microbatches // stages)
    if microbatches % groups:
        fitting = f"{groups * stages} or {(groups + 1) * stages}"
        raise PlanningError(
            f"{microbatches} microbatches cannot be split into {groups} equal groups of at least "
            f"{stages}, the stages, which interleaved-1f1b needs: take {fitting}"
        )
    return microbatches // groups


def _rank_order(
    rank: int, warmup: int, group: int, chunks: int, total: int
) -> Iterator[Computation]:
    for n in range(total + warmup):
        if n < total:
            yield Computation(rank, *_nth(n, group, chunks, "forward"))
        if n >= warmup:
            yield Computation(rank, *_nth(n - warmup, group, chunks, "backward"))


def _nth(n: int, group: int, chunks: int, instruction: str) -> tuple[int, str, int]:
    """(chunk, instruction, microbatch) of the n-th forward or backward of a rank."""
    turn, place = divmod(n, group)
    round_, chunk = divmod(turn, chunks)
    if instruction == "backward":
        chunk = chunks - 1 - chunk
    return chunk, instruction, round_ * group + place
