"""Plans on real clocks for deadlines of which the relaxation's answer is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perseusd.core.planner import first
from perseusd.core.planner.chains import improve
from perseusd.core.planner.envelope import Support
from perseusd.core.planner.instance import Instance
from perseusd.core.planner.relax import Relaxed
from perseusd.core.planner.splice import longest_prefix

Ints = NDArray[np.intp]

LATE = 1e-9  # relative; what ends this little after its deadline is in time


@dataclass(frozen=True)
class Placed:
    """(n,) options, when they end without noise, and their cost in joules."""

    option: Ints
    end_s: float
    cost: float

    @classmethod
    def of(cls, inst: Instance, option: Ints) -> Placed:
        end_s = float(inst.graph.makespan(inst.durations(option)))
        return cls(option, end_s, inst.total_cost(option))


@dataclass(frozen=True)
class Deadline:
    """A deadline, as that of `inst`, and what the relaxation says of it."""

    inst: Instance
    relaxed: Relaxed

    @classmethod
    def of(cls, inst: Instance, support: Support, deadline_s: float) -> Deadline:
        none = np.zeros((1, 0))  # nobody asks for the flow
        bound = support.base - support.slope * deadline_s
        relaxed = Relaxed(support.cost, support.durations, support.price, none, none, bound)
        return cls(replace(inst, deadline_s=deadline_s, tightest_s=deadline_s), relaxed)

    def first(self) -> Placed:
        """Where the relaxation says."""
        return Placed.of(self.inst, first.placed(self.inst, self.relaxed))

    def improved(
        self, plan: Placed, more_time: Callable[[], bool], enough: float = -np.inf
    ) -> Placed:
        """No dearer; sought until the cost is `enough`."""
        option = improve(self.inst, self.relaxed, plan.option, more_time, enough)
        return Placed.of(self.inst, option)

    def among(self, plans: Sequence[Placed]) -> list[Placed]:
        """Of plans that end ever later and cost ever less: the cheapest that is in time, and how
        far from its start the iteration can be the next one."""
        ends = [p.end_s for p in plans]
        after = int(np.searchsorted(ends, self.inst.deadline_s * (1 + LATE), side="right"))
        here = plans[after - 1]
        if after == len(plans):
            return [here]
        inst, slower = self.inst, plans[after].option
        durations = inst.durations(slower), inst.durations(here.option)
        count = longest_prefix(inst.network, *durations, inst.deadline_s)
        return [here, Placed.of(inst, np.concatenate([slower[:count], here.option[count:]]))]

    def best(self, plans: Sequence[Placed]) -> Placed:
        """The cheapest that is in time."""
        latest = self.inst.deadline_s * (1 + LATE)
        return min((p for p in plans if p.end_s <= latest), key=lambda p: p.cost)


def falling(plans: Sequence[Placed]) -> list[Placed]:
    """Those that cost less than all that end before them, first ends first."""
    kept: list[Placed] = []
    for plan in sorted(plans, key=lambda p: (p.end_s, p.cost)):
        if kept and plan.cost < kept[-1].cost and plan.end_s <= kept[-1].end_s * (1 + LATE):
            kept.pop()
        if not kept or plan.cost < kept[-1].cost:
            kept.append(plan)
    return kept
