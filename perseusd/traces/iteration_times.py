"""A series of iteration times, one job's: `step,iteration_time_s`, as made from a trainer's log.

Nothing is told of replicas, stages or computations, so only whole iterations can be slow.
"""

from __future__ import annotations

import itertools

from perseusd.core.stragglers import Observation
from perseusd.errors import TraceError
from perseusd.traces.columns import Columns
from perseusd.traces.trace import Run, Trace

COLUMNS = ("step", "iteration_time_s")


def read(columns: Columns) -> Trace:
    """Raises TraceError where a time is not positive or steps do not ascend."""
    steps = columns.integers("step").tolist()
    times = columns.seconds("iteration_time_s", zero=False).tolist()
    for row, (before, step) in enumerate(itertools.pairwise(steps), start=1):
        if step <= before:
            raise TraceError(
                f"{columns.where(row)}: step is {step} and comes after {before}: put rows in order"
            )
    observations = [
        Observation(replica=0, number=step, computations=(), time_s=time_s)
        for step, time_s in zip(steps, times, strict=True)
    ]
    return Trace(columns.path, "iteration times", [Run(None, observations)])
