"""A job's deadline problem as it stands: curves, the time to end by, the writes allowed."""

from __future__ import annotations

from collections.abc import Mapping

from perseusd.core.jobs.understanding import Understanding
from perseusd.core.learned.knowledge import GpuFacts
from perseusd.core.model import Curve, Problem
from perseusd.core.savings.ledger import Ledger
from perseusd.core.settings import Settings
from perseusd.core.trials.windows import SHORTEST_S
from perseusd.errors import PlanningError

PESSIMISM = 5.0
"""A plan at ratio 1 that still runs late by a share y of the iteration rests on curves that promise
too much at lower clocks. Those take some 20 % longer than the top clock, so a growth of y is had by
stretching what they take longer by y / 20 %."""

FEWEST_WRITES = 2
"""Per GPU and iteration: one lower run and back. Fewer is full clock throughout."""

NO_SLACK = 0.005
"""Of an iteration: what may take less than this longer is on the critical path, as far as noise
lets anybody tell."""

URGENT_SHARE = 0.4
"""Of the usual planning time where a straggler is waited for already: better a good plan now than
the best one later."""


def deadline_problem(
    known: Understanding,
    ledger: Ledger,
    stretch: float,
    max_writes: int,
    time_budget_s: float,
    slow: Mapping[int, float],
) -> Problem:
    """Least energy for an iteration `stretch` × the baseline's time longer than at full clock.

    slow: by rank, how much longer its computations take now, and so does full clock.

    The ledger's baseline is iteration time, start to start; the problem is about the makespan, so
    the stretch is taken over to it in seconds. A negative stretch cannot shorten the deadline, only
    make the plan believe less of the curves. Raises PlanningError while too little is known.
    """
    baseline = ledger.sample("baseline")
    if baseline is None:
        raise PlanningError("no iteration was measured at full clock yet")
    curves, blocking = known.knowledge.curves(known.graph.kinds)
    if all(len(curve.clock_mhz) < 2 for curve in curves.values()):
        raise PlanningError(_why_untried(known))
    curves = {
        kind: curve if len(curve.clock_mhz) > 1 else _untried(curve, known.gpus[kind.rank])
        for kind, curve in curves.items()
    }
    curves = {kind: _longer(curve, slow.get(kind.rank, 1.0)) for kind, curve in curves.items()}
    if stretch < 0:
        curves = {kind: _pessimistic(c, -stretch * PESSIMISM) for kind, c in curves.items()}
    makespan_s = ledger.makespan_s("baseline") * known.inflation(slow)
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


def _why_untried(known: Understanding) -> str:
    """Why no computation was seen at a lower clock."""
    explorer = known.explorer
    if explorer.windows:
        ended = "one iteration" if explorer.iterations == 1 else f"{explorer.iterations} iterations"
        if explorer.done(known.knowledge):  # more iterations would not be used
            return (
                f"learning ended after {ended}: no computation was seen to run at a lower clock, "
                "and nowhere was there slack enough for a trial any more"
            )
        return (
            f"learning ended after {ended} before anything was learned of a lower clock: no "
            "computation was seen to run at one"
        )
    if known.pipeline.ranks < 2:
        return (
            "a job of one stage has nothing to wait for: it is measured, and stays at full clock "
            "(unless it has a slowdown budget of its own)"
        )
    if not explorer.has_lower_clocks:
        return "no lower clock may be tried: [limits] min_clock_fraction leaves its GPUs none"
    if explorer.slack_share(known.knowledge.time_model()) < NO_SLACK:
        return (
            "no lower clock could be tried without slowing training: there is no slack in this "
            "job, every computation is on its critical path"
        )
    return (
        "no lower clock could be tried within [limits] learning_slowdown: nowhere in this job is "
        f"there slack enough for a trial, which takes at least {SHORTEST_S * 1e3:g} ms"
    )


def _longer(curve: Curve, factor: float) -> Curve:
    """The curve of a rank that straggles: the same power for longer."""
    return Curve(
        curve.clock_mhz,
        tuple(t * factor for t in curve.time_s),
        tuple(e * factor for e in curve.energy_j),
    )


def _untried(curve: Curve, gpu: GpuFacts) -> Curve:
    """A kind no lower clock was tried for: one is offered at its worst, which no plan will take."""
    top_mhz = curve.clock_mhz[-1]
    lower_mhz = max(c for c in gpu.supported_mhz if c < top_mhz)
    worse = top_mhz / lower_mhz
    return Curve(
        (lower_mhz, top_mhz),
        (curve.time_s[-1] * worse, curve.time_s[-1]),
        (curve.energy_j[-1] * worse, curve.energy_j[-1]),
    )


def _pessimistic(curve: Curve, share: float) -> Curve:
    """The curve with everything that lower clocks add to the time stretched by `share`."""
    top_s = curve.time_s[-1]
    grown = [top_s + (t - top_s) * (1 + share) if t > top_s else t for t in curve.time_s]
    energy = [e * g / t for e, g, t in zip(curve.energy_j, grown, curve.time_s, strict=True)]
    return Curve(curve.clock_mhz, tuple(grown), tuple(energy))


def most_writes(settings: Settings, iteration_time_s: float, latency_s: float, gpus: int) -> int:
    """Per GPU and iteration: bounded for each GPU, and by the driver lock that a node's share.

    Fewer than FEWEST_WRITES are none: such a job stays at full clock.
    """
    by_rate = settings.max_writes_per_s * iteration_time_s
    share_s = settings.max_node_write_share * iteration_time_s
    by_lock = share_s / max(latency_s * gpus, 1e-9)
    return int(min(by_rate, by_lock))
