"""One picture of the plan: the pipeline before and after, and the frontier with the plan on it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from perseusd.core.graph import Graph
from perseusd.core.model import Plan
from perseusd.core.planner.evaluation import Evaluation, evaluate
from perseusd.core.planner.frontier import Frontier
from perseusd.ctl.output import percent
from perseusd.ctl.plan.answer import Clocks, clocks_mhz
from perseusd.ctl.plan.job import Job
from perseusd.ctl.plan.solution import Solution, saving
from perseusd.draw.frontier import frontier_svg
from perseusd.draw.pipeline import Bar, Timeline, pipeline_svg
from perseusd.draw.sheet import sheet


def plot(job: Job, solution: Solution, frontier: Frontier) -> str:
    """An SVG document."""
    result, powers = solution.result, job.problem.blocking_power_w
    full_plan = Plan(tuple((None,) * len(order) for order in job.ordered.orders))
    full = tuple(
        tuple(job.problem.curves[c.kind].clock_mhz[-1] for c in order)
        for order in job.ordered.orders
    )
    most = percent(saving(job, result.energy_lower_bound_j))
    pipelines = pipeline_svg(
        f"{percent(result.saving)} less energy by {result.deadline_s:.3f} s",
        f"{job.ordered.name}, {len(job.ordered.orders)} ranks, {job.ordered.microbatches} "
        f"microbatches; no plan can save more than {most}",
        [
            _timeline(job, "Every computation at full clock", full, evaluate(job.calm, full_plan)),
            _timeline(
                job, "As planned", clocks_mhz(job, solution), evaluate(job.calm, result.plan)
            ),
        ],
        sum(powers) / len(powers),
    )
    curve = frontier_svg(
        "Least energy for each iteration time",
        "Dots are plans on real clocks; no plan can be in the shaded area",
        frontier,
        result,
    )
    return sheet("Plan, pipeline and frontier", [pipelines, curve])


def _timeline(job: Job, words: str, clocks: Clocks, told: Evaluation) -> Timeline:
    bars = [
        bar
        for rank, of_rank in enumerate(clocks)
        for bar in _bars(job, rank, of_rank, told.start_s[rank])
    ]
    graph = Graph.from_pipeline(job.problem.pipeline)
    position = {node: k for k, node in enumerate(np.concatenate(graph.order).tolist())}
    durations = np.empty(len(graph))
    for node, k in position.items():
        durations[node] = bars[k].end_s - bars[k].start_s
    return Timeline(
        title=f"{words}: {told.energy_j:,.0f} J until the deadline".replace(",", "\u2009"),
        bars=bars,
        critical=[position[node] for node in graph.critical_nodes(durations)],
        end_s=told.iteration_time_s,
    )


def _bars(job: Job, rank: int, clocks: Sequence[int], starts: Sequence[float]) -> Iterator[Bar]:
    ends = (*starts[1:], math.inf)
    order = job.ordered.orders[rank]
    for computation, clock, start, end in zip(order, clocks, starts, ends, strict=True):
        curve = job.problem.curves[computation.kind]
        at = curve.clock_mhz.index(clock)
        yield Bar(
            rank=rank,
            instruction=computation.instruction,
            microbatch=computation.microbatch,
            start_s=start,
            end_s=min(start + curve.time_s[at], end),  # an old clock that stays on can be faster
            clock_mhz=clock,
            power_w=curve.energy_j[at] / curve.time_s[at],
        )
