"""A GPU's activities one by one, as a test writes them down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from perseusd.core.energy.attribution import Activities, Column
from perseusd.core.energy.stretch import waiting_first
from perseusd.core.model import Kind


class Activity(NamedTuple):
    """What the GPU did between two moments; kind None: it waited."""

    start_ns: int
    end_ns: int
    kind: Kind | None
    clock_mhz: int

    @property
    def column(self) -> Column | None:
        return None if self.kind is None else Column(self.kind, self.clock_mhz)


def together(rows: Sequence[Activity]) -> Activities:
    """rows: without a gap."""
    columns = sorted({row.column for row in rows}, key=waiting_first)
    edges_ns = [row.start_ns for row in rows[:1]] + [row.end_ns for row in rows]
    of = [columns.index(row.column) for row in rows]
    return Activities(
        np.array(edges_ns, dtype=np.int64), tuple(columns), np.array(of, dtype=np.int64)
    )


def one_by_one(activities: Activities) -> list[Activity]:
    edges_ns = activities.edges_ns.tolist()
    found = []
    for start_ns, end_ns, k in zip(edges_ns, edges_ns[1:], activities.of.tolist(), strict=False):
        kind, clock = activities.columns[k] or (None, 0)
        found.append(Activity(start_ns, end_ns, kind, clock))
    return found
