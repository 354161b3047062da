"""Schedules by name. Orders that follow from measured costs (ZBV, DualPipeV) are none of these."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from perseusd.core.model import Computation
from perseusd.core.schedules.data_parallel import data_parallel
from perseusd.core.schedules.gpipe import gpipe
from perseusd.core.schedules.interleaved import interleaved_one_f_one_b
from perseusd.core.schedules.one_f_one_b import early_recompute_one_f_one_b, one_f_one_b, zb_h1
from perseusd.core.schedules.size import check_size
from perseusd.errors import PlanningError

_Orders = tuple[tuple[Computation, ...], ...]

_ONE_CHUNK: dict[str, Callable[[int, int], _Orders]] = {
    "1f1b": one_f_one_b,
    "gpipe": gpipe,
    "early-recompute-1f1b": early_recompute_one_f_one_b,
    "zb-h1": zb_h1,
    "data-parallel": lambda stages, _: data_parallel(stages),
}
_CHUNKED: dict[str, Callable[[int, int, int], _Orders]] = {
    "interleaved-1f1b": interleaved_one_f_one_b,
}

NAMES: tuple[str, ...] = (*_ONE_CHUNK, *_CHUNKED)
"""What `by_name` knows."""


def by_name(name: str, stages: int, microbatches: int, chunks: int = 1) -> _Orders:
    """The orders of a schedule: per rank, its computations in execution order.

    Raises PlanningError for a name that is not known, nearest names first, and for sizes that the
    schedule cannot have.
    """
    key = name.strip().casefold().replace("_", "-")
    check_size(stages=stages, microbatches=microbatches, chunks=chunks)
    if key in _CHUNKED:
        return _CHUNKED[key](stages, microbatches, chunks)
    if key not in _ONE_CHUNK:
        nearest = difflib.get_close_matches(key, NAMES, n=len(NAMES), cutoff=0.0)
        raise PlanningError(
            f"no schedule is called {name!r}; known are {', '.join(nearest)}; "
            "any other order can be given rank by rank"
        )
    if chunks != 1:
        chunked = ", ".join(_CHUNKED)
        raise PlanningError(f"{key} has 1 chunk per rank, not {chunks}; with several: {chunked}")
    return _ONE_CHUNK[key](stages, microbatches)
