"""Events: where computations wait for the same others, they start at the same event.

Between two events lies a computation; it ends at every event that waits for it. Where those who
start at an event wait for the others by different lags, each has an offset of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perseusd.core.planner import events_kernels as kernels
from perseusd.core.planner.network import Network

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """Events and ends of a network, as the kernels take them (events_kernels.py)."""

    arrays: tuple[Ints, ...]
    end_of_edge: Ints
    events: int

    @classmethod
    def of(cls, network: Network) -> Layout:
        n, edges = len(network), len(network.head)
        into, leaving = (
            (network.into_first, network.into_edge),
            (network.from_first, network.from_edge),
        )
        event = np.empty(n, dtype=np.int64)
        events = kernels.find_events(*into, network.tail, *leaving, network.head, event)
        end_first, end_event = np.empty(n + 1, dtype=np.int64), np.empty(edges, dtype=np.int64)
        end_of_edge = np.empty(edges, dtype=np.int64)
        ends = kernels.find_ends(*leaving, network.head, event, end_first, end_event, end_of_edge)
        end_event = end_event[:ends].copy()
        arrays = (
            network.kind,
            event,
            *_grouped(event, events),
            end_first,
            end_event,
            *_grouped(end_event, events),
            np.repeat(np.arange(n), np.diff(end_first)),
        )
        return cls(arrays, end_of_edge, events)

    @property
    def ends(self) -> int:
        return len(self.arrays[5])

    @property
    def most_near(self) -> int:
        """The most computations that start and end at one event."""
        _, _, member_first, _, _, _, in_first, _, _ = self.arrays
        return int((np.diff(member_first) + np.diff(in_first)).max())


def _grouped(group: Ints, count: int) -> tuple[Ints, Ints]:
    """(count + 1,) where each group's members begin, and the members, group by group."""
    first = np.zeros(count + 1, dtype=np.int64)
    np.cumsum(np.bincount(group, minlength=count), out=first[1:])
    return first, np.argsort(group, kind="stable").astype(np.int64)
