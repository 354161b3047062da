"""The plan for other tools: Zeus's format."""

from __future__ import annotations

from perseusd import __version__
from perseusd.ctl.output import percent
from perseusd.ctl.plan.answer import clocks_mhz
from perseusd.ctl.plan.job import Job
from perseusd.ctl.plan.solution import Solution
from perseusd.traces.zeus import zeus_plan


def exported(job: Job, solution: Solution) -> str:
    """The text of a file that Zeus's server takes as `solution_path`."""
    result = solution.result
    instructions = (tuple(c.instruction for c in order) for order in job.ordered.orders)
    ranks = [
        tuple(zip(names, clocks, strict=True))
        for names, clocks in zip(instructions, clocks_mhz(job, solution), strict=True)
    ]
    return zeus_plan(
        ranks,
        [
            f"perseusd {__version__}: {job.ordered.name}, {job.ordered.microbatches} microbatches",
            f"deadline {result.deadline_s:.6f} s, iteration {result.iteration_time_s:.6f} s",
            f"{result.energy_j:.1f} J, {percent(result.saving)} less than at full clock; no plan "
            f"uses less than {result.energy_lower_bound_j:.1f} J",
        ],
    )
