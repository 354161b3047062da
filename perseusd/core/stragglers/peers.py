"""What a replica's peers tell: the reference that all share, and what happens to all at once.

Three replicas or more make a reference without any past: a rank cannot have been healthy where it
took longer than the same stage of the (lower) median replica. Of two, a rank was slow from the
start where it takes much longer than the other's same stage and its replica's other stages do not.
And what happens to every replica at the same time is a change of the work, not a straggler.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from perseusd.core.stragglers.compute import Excess
from perseusd.core.stragglers.levels import Array

ENOUGH = 3
"""Replicas that make a reference, the own one included."""

ALIKE = 0.05
"""By how much healthy GPUs of one model may differ (log); what is more was slow from the start."""

ALIKE_OF_TWO = 0.15
"""The same of two replicas: there is no third to tell which of them is the odd one."""

CERTAIN_WINDOW = 2.0
CERTAIN_SINGLE = 3.0
"""Standard errors that a peer's excess must exceed zero by, and is taken less, to count."""


def alike(peers: int) -> float:
    """By how much a healthy rank may differ (log) from so many peers."""
    return ALIKE if peers + 1 >= ENOUGH else ALIKE_OF_TWO


def shared_reference(own: Array, peers: Sequence[Array], several: bool = True) -> Array:
    """A replica's own reference, or the peers' where it cannot be sound, shape (kinds,).

    several: whether the kinds are of several ranks (or links). Then most of them are well, and
    their middle tells what all have in common, such as lengths; what scatters about it is not
    apart. Of one rank, most kinds may be slow, and those that are least tell it.
    """
    if not peers:
        return own
    over = own - _low_median(np.stack([own, *peers]))
    common = float(np.sort(over)[(len(over) - 1) // 2 if several else len(over) // 4])
    apart = over - common
    sound = own - np.where(apart > alike(len(peers)), apart, 0.0)
    whole = len(peers) + 1 >= ENOUGH and common > ALIKE
    return sound - (common if whole else 0.0)


def common_to_all(
    windows: Sequence[int], peers: Sequence[tuple[Excess, NDArray[np.bool_]]]
) -> Array | None:
    """The excess that the (lower) median peer shows too, shape (windows, columns), never below 0.

    peers: each with the columns that are known to be slow there, and tell nothing of the others.
    A peer that is one iteration behind counts by its latest iteration alone where that is more.
    """
    if not peers:
        return None
    taken = [_taken(len(windows), peer, slow) for peer, slow in peers]
    common = _low_median(np.stack([window for window, _ in taken]))
    latest = _low_median(np.stack([single for _, single in taken]))
    shared: Array = np.maximum(np.maximum(common, latest[None, :]), 0.0)
    return shared


def _taken(windows: int, peer: Excess, slow: NDArray[np.bool_]) -> tuple[Array, Array]:
    rows = np.minimum(np.arange(windows), len(peer.windows) - 1)
    window = peer.raw[rows] - CERTAIN_WINDOW * peer.error[rows]
    single = peer.raw[0] - CERTAIN_SINGLE * peer.error[0]
    window[:, slow], single[slow] = np.nan, np.nan
    return window, single


def _low_median(stacked: Array) -> Array:
    """Median over the first axis, of an even number the lower of the middle two; NaN is absent."""
    ordered = np.sort(stacked, axis=0)
    present = np.count_nonzero(stacked == stacked, axis=0)
    if present.min(initial=len(stacked)) == len(stacked):
        whole: Array = ordered[(len(stacked) - 1) // 2]
        return whole
    middle = np.maximum(present - 1, 0) // 2
    low: Array = np.take_along_axis(ordered, middle[None], axis=0)[0]
    low[present == 0] = 0.0
    return low
