"""The energy–deadline frontier: what the least energy is at every iteration time, certified.

It begins at the *shortest* iteration time, every computation at its fastest. From there energy
falls to the *least-energy time* T*, where one more second of waiting costs as much as it saves. An
iteration that must wait for a straggler anyway pays for waiting whatever it does, so slowing down
pays on to the *longest useful time*, every computation at its cheapest.

A handful of solves holds the whole curve (envelope.py). A plan for any deadline is then made
without a solve: durations and prices of the two nearest solves, mixed, say where real clocks go
(placing.py), or it begins as one known plan does and ends as another (splice.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perseusd.core.model import Plan, PlanResult, Problem
from perseusd.core.planner.envelope import Envelope, Mixer, Support, sandwich
from perseusd.core.planner.hulls import Hulls
from perseusd.core.planner.instance import Instance
from perseusd.core.planner.interior import relax_free
from perseusd.core.planner.placing import LATE, Deadline, Placed, falling
from perseusd.core.planner.runs import plan_writes
from perseusd.errors import PlanningError

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

# A point's plan is improved by so many chains (chains.py): most of what there is to gain.
_CHAINS_PER_RANK = 6
_ENOUGH = 0.1  # of the accuracy: a plan this near to its bound is not improved further
# A plan this much dearer than the least, of its energy, that ends sooner is preferred to it: the
# curve is flat there.
_FLAT = 1e-4


@dataclass(frozen=True)
class FrontierPoint:
    """A plan on real clocks.

    iteration_time_s: when its iteration ends.  energy_j: of all ranks, waiting until then.
    energy_lower_bound_j: no plan that ends by then uses less; certified.
    """

    iteration_time_s: float
    energy_j: float
    energy_lower_bound_j: float
    plan: Plan


@dataclass(frozen=True)
class Frontier:
    """The frontier of a problem with free clocks and no noise. Asking it changes nothing.

    points: real plans, times ascending and costs descending, to the longest useful time.
    gap: the largest distance between `upper_j` and `lower_bound_j`, as a share of the energy.
    """

    points: tuple[FrontierPoint, ...]
    shortest_time_s: float
    longest_useful_time_s: float
    gap: float
    _inst: Instance
    _mixer: Mixer
    _supports: tuple[Support, ...]
    _envelope: Envelope
    _placed: tuple[Placed, ...]

    @property
    def printed(self) -> tuple[FrontierPoint, ...]:
        """From the shortest to the least-energy time: energies fall all along."""
        enough = (1 + _FLAT) * min(point.energy_j for point in self.points)
        found = [self.points[0]]
        for point in self.points[1:]:
            if found[-1].energy_j <= enough:
                break
            if point.energy_j < found[-1].energy_j:
                found.append(point)
        return tuple(found)

    @property
    def baseline_time_s(self) -> float:
        """Every computation at its highest clock."""
        return self._inst.baseline_time_s

    @property
    def baseline_energy_j(self) -> float:
        """Of that iteration, until its own end."""
        return self._inst.energy(self._inst.total_cost(self._inst.full))

    @property
    def least_energy_time_s(self) -> float:
        """T*: of the plan of least energy when nothing has to be waited for, within 0.01 %."""
        return self.printed[-1].iteration_time_s

    def lower_bound_j(self, deadline_s: float) -> float:
        """Joules below which no plan goes by the deadline, waiting until it; certified."""
        return self._envelope.lower(deadline_s) + self._inst.waiting_power_w * deadline_s

    def upper_j(self, deadline_s: float) -> float:
        """Joules that a mix of clocks reaches by the deadline, waiting until it.

        Raises PlanningError for a deadline below the shortest iteration time.
        """
        useful = self._useful(deadline_s)
        return self._envelope.upper(useful) + self._inst.waiting_power_w * deadline_s

    def plan(self, deadline_s: float, more_time: Callable[[], bool] | None = None) -> PlanResult:
        """A plan on real clocks by any deadline, without a solve; `solve_time_s` is left at 0.

        more_time: asked while the plan is improved further; without one it is not.
        Beyond the longest useful time it is the cheapest plan, waiting.
        Raises PlanningError for a deadline below the shortest iteration time.
        """
        useful = self._useful(deadline_s)
        mixed = self._mixture(useful)
        at = Deadline.of(self._inst, mixed, useful)
        best = at.best([*at.among(self._placed), at.first()])
        if more_time is not None:
            best = at.best([best, at.improved(best, more_time)])
        mixed_bound = mixed.base - mixed.slope * useful
        bound = max(mixed_bound, self._envelope.lower(deadline_s))
        return _result(self._inst, best, deadline_s, bound)

    def _useful(self, deadline_s: float) -> float:
        if not deadline_s >= self.shortest_time_s * (1 - LATE):
            raise PlanningError(
                f"the deadline is {deadline_s:.6g} s: the shortest iteration time, with every "
                f"computation at its fastest, is {self.shortest_time_s:.6g} s"
            )
        return min(max(deadline_s, self.shortest_time_s), self.longest_useful_time_s)

    def _mixture(self, deadline_s: float) -> Support:
        """What the two nearest solves say of a deadline between them."""
        times = [s.time_s for s in self._supports]
        place = int(np.clip(np.searchsorted(times, deadline_s), 1, len(times) - 1))
        one, other = self._supports[place - 1], self._supports[place]
        span = other.time_s - one.time_s
        share = (deadline_s - one.time_s) / span if span > 0 else 0.0
        return self._mixer.mixture(one, other, share)


def frontier(
    problem: Problem, *, accuracy: float = 0.002, clock: Callable[[], float] | None = None
) -> Frontier:
    """The frontier of `problem` with free clocks and no noise, whatever its limits and deadline.

    accuracy: the largest distance between the bound and what mixed clocks reach, as a share of the
        energy, at any iteration time.
    clock: seconds, monotonic; after `time_budget_s` the plans are no longer improved.
    Raises PlanningError naming what is wrong with the problem.
    """
    started = clock() if clock else 0.0

    def more_time() -> bool:
        return clock is None or clock() - started < problem.time_budget_s

    free = replace(
        problem, deadline_ratio=1.0, noise=0.0, confidence=None, max_writes=None, write_latency_s=0
    )
    inst = Instance.of(free)
    mixer = Mixer(Hulls.of(inst.problem, inst.graph), inst.network.kind)
    supports, envelope = _curve(inst, mixer, accuracy)
    placed = tuple(_plans(inst, mixer, supports, accuracy, more_time))
    return Frontier(
        points=tuple(_points(inst, placed, envelope)),
        shortest_time_s=supports[0].time_s,
        longest_useful_time_s=supports[-1].time_s,
        gap=envelope.widest(inst.waiting_power_w)[0],
        _inst=inst,
        _mixer=mixer,
        _supports=tuple(supports),
        _envelope=envelope,
        _placed=placed,
    )


def _curve(inst: Instance, mixer: Mixer, accuracy: float) -> tuple[list[Support], Envelope]:
    fastest, cheapest = (inst.durations(o) for o in (mixer.fastest(), mixer.cheapest()))

    def solve(deadline_s: float) -> Support:
        relaxed = relax_free(inst.network, mixer.hulls, deadline_s)
        slope = relaxed.deadline_price
        return Support(
            time_s=deadline_s,
            cost=relaxed.cost,
            durations=relaxed.durations,
            base=relaxed.bound + slope * deadline_s,
            slope=slope,
            price=relaxed.price,
            lags=float(relaxed.edge_flow[0] @ inst.network.lag),
        )

    # At its end the curve is flat: every computation at its cheapest, and time is worth nothing.
    least = inst.total_cost(mixer.cheapest())
    longest = float(inst.graph.makespan(cheapest))
    end = Support(longest, least, cheapest, least, 0.0, np.zeros(len(inst.graph)), 0.0)
    begin = solve(float(inst.graph.makespan(fastest)))
    return sandwich(begin, end, mixer, inst.waiting_power_w, accuracy, solve)


def _plans(
    inst: Instance,
    mixer: Mixer,
    supports: Sequence[Support],
    accuracy: float,
    more_time: Callable[[], bool],
) -> list[Placed]:
    """Plans for the deadlines that were solved, first ends first, each cheaper than the last."""
    fastest, cheapest = Placed.of(inst, mixer.fastest()), Placed.of(inst, mixer.cheapest())
    found = [fastest, cheapest]
    for support in supports[:-1]:
        at = Deadline.of(inst, support, support.time_s)
        placed = at.best([fastest, at.first()])
        enough = at.relaxed.bound + _ENOUGH * accuracy * at.inst.energy(at.relaxed.bound)
        chains = iter(range(_CHAINS_PER_RANK * inst.graph.ranks))

        def more(left: Iterator[int] = chains) -> bool:
            return next(left, None) is not None and more_time()

        found.append(at.best([placed, at.improved(placed, more, enough)]))
    return falling(found)


def _points(inst: Instance, placed: Sequence[Placed], envelope: Envelope) -> list[FrontierPoint]:
    return [
        FrontierPoint(
            iteration_time_s=p.end_s,
            energy_j=p.cost + inst.waiting_power_w * p.end_s,
            energy_lower_bound_j=envelope.lower(p.end_s) + inst.waiting_power_w * p.end_s,
            plan=inst.plan(p.option),
        )
        for p in placed
    ]


def _result(inst: Instance, placed: Placed, deadline_s: float, bound: float) -> PlanResult:
    plan = inst.plan(placed.option)
    written = plan_writes(plan, full_clock_at_end=inst.problem.full_clock_at_end)
    full_cost = inst.total_cost(inst.full)
    waiting, baseline = inst.waiting_power_w, inst.baseline_time_s
    energy = placed.cost + waiting * deadline_s
    return PlanResult(
        plan=plan,
        deadline_s=deadline_s,
        iteration_time_s=placed.end_s,
        energy_j=energy,
        energy_lower_bound_j=bound + waiting * deadline_s,
        energy_lower_bound_writes_j=bound + waiting * deadline_s,
        baseline_time_s=baseline,
        baseline_energy_j=full_cost + waiting * baseline,
        saving=1 - energy / (full_cost + waiting * max(deadline_s, baseline)),
        clock_writes=max(written),
        margin_s=0.0,
        solve_time_s=0.0,
    )
