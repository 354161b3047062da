"""A job's deadline problem as it stands: curves, the time to end by, the writes allowed."""

from __future__ import annotations

from perseusd.core.ledger import Ledger
from perseusd.core.model import Problem
from perseusd.core.settings import Settings
from perseusd.core.understanding import Understanding
from perseusd.errors import PlanningError

FEWEST_WRITES = 2
"""Per GPU and iteration: one lower run and back. Fewer is full clock throughout."""

URGENT_SHARE = 0.4
"""Of the usual planning time where a straggler is waited for already: better a good plan now than
the best one later."""


def deadline_problem(
    known: Understanding, ledger: Ledger, stretch: float, max_writes: int, time_budget_s: float
) -> Problem:
    """Least energy for an iteration `stretch` × the baseline's time longer than the baseline's.

    The ledger's baseline is iteration time, start to start; the problem is about the makespan, so
    the stretch is taken over to it in seconds. Raises PlanningError while too little is known.
    """
    baseline = ledger.sample("baseline")
    if baseline is None:
        raise PlanningError("no iteration was measured at full clock yet")
    curves, blocking = known.knowledge.curves(known.graph.kinds)
    makespan_s = ledger.makespan_s("baseline")
    if baseline.mean <= 0 or makespan_s <= 0:
        raise PlanningError("by their stamps, the baseline's iterations took no time")
    return Problem(
        pipeline=known.pipeline,
        curves=curves,
        blocking_power_w=[blocking[r] for r in range(known.pipeline.ranks)],
        deadline_ratio=max(1.0, 1.0 + stretch * baseline.mean / makespan_s),
        noise=known.knowledge.noise(),
        max_writes=max_writes,
        time_budget_s=time_budget_s,
    )


def most_writes(settings: Settings, iteration_time_s: float, latency_s: float, gpus: int) -> int:
    """Per GPU and iteration: bounded for each GPU, and by the driver lock that a node's share."""
    by_rate = settings.max_writes_per_s * iteration_time_s
    share_s = settings.max_node_write_share * iteration_time_s
    by_lock = share_s / max(latency_s * gpus, 1e-9)
    return max(FEWEST_WRITES, int(min(by_rate, by_lock)))
