"""Where virtual stages are: which rank holds which chunk of the model.

With p ranks, chunk c of rank r is virtual stage

    looped:  v = c·p + r                      every chunk goes round the ranks the same way
    v:       v = c·p + r            (c even)  there and back again: the last rank holds two
             v = (c + 1)·p − 1 − r  (c odd)   neighbours, and the first rank both ends

The second is the V-shape of ZBV and DualPipeV. With one chunk, or one rank, both are the same.
"""

from __future__ import annotations

from typing import Literal

from perseusd.core.model import Computation

Layout = Literal["looped", "v"]

_V_SHAPED = ("zbv", "dualpipev", "vshape", "vhalf", "vmin")


def virtual_stage(computation: Computation, ranks: int, layout: Layout = "looped") -> int:
    """The virtual stage that a computation belongs to, from 0."""
    if layout == "v" and computation.chunk % 2:
        return (computation.chunk + 1) * ranks - 1 - computation.rank
    return computation.chunk * ranks + computation.rank


def home(stage: int, ranks: int, layout: Layout) -> tuple[int, int]:
    """(rank, chunk) of a virtual stage: the inverse of `virtual_stage`."""
    chunk, place = divmod(stage, ranks)
    return (ranks - 1 - place if layout == "v" and chunk % 2 else place), chunk


def likeliest(chunks: int, ranks: int, schedule: str | None) -> tuple[Layout, ...]:
    """Layouts to consider, likeliest first.

    schedule: a name that was declared for the order, such as `ScheduleZBVZeroBubble`; advice only.
    """
    if chunks == 1 or ranks == 1:
        return ("looped",)
    return ("v", "looped") if _is_v_shaped(schedule or "") else ("looped", "v")


def _is_v_shaped(schedule: str) -> bool:
    name = "".join(filter(str.isalnum, schedule.casefold()))
    return any(known in name for known in _V_SHAPED)
