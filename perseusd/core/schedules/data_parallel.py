"""A job without a pipeline: every rank runs whole iterations and waits for nobody inside one."""

from __future__ import annotations

from perseusd.core.model import Computation
from perseusd.core.schedules.size import check_size


def data_parallel(ranks: int) -> tuple[tuple[Computation, ...], ...]:
    """One `iteration` per rank, whatever the microbatches in it."""
    check_size(stages=ranks)
    return tuple((Computation(rank, 0, "iteration", 0),) for rank in range(ranks))
