"""GPipe (Huang et al., NeurIPS 2019): all forwards, then all backwards."""

from __future__ import annotations

from perseusd.core.model import Computation
from perseusd.core.schedules.size import check_size


def gpipe(stages: int, microbatches: int) -> tuple[tuple[Computation, ...], ...]:
    """Both in order of microbatch, as torch runs them."""
    check_size(stages=stages, microbatches=microbatches)
    return tuple(
        tuple(
            Computation(s, 0, instruction, m)
            for instruction in ("forward", "backward")
            for m in range(microbatches)
        )
        for s in range(stages)
    )
