"""Runs of the Perseus artifact (SOSP 2024): how long each computation took, under several plans.

Computations: `plan,stage,instruction,iteration,microbatch,time_s`, a row each, 1F1B, one pipeline.
Iterations: `plan,stage,iteration,iteration_time_s`, a row for each stage of each iteration; it is
also looked for beside the other (`X_computations.parquet`, `X_iterations.csv`), since the first
says nothing of when. Each plan is a run of its own, and its iteration 0 warms up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from perseusd.core.model import Computation
from perseusd.core.schedules import one_f_one_b
from perseusd.core.stragglers import Observation
from perseusd.errors import TraceError
from perseusd.traces.columns import Columns, read_csv
from perseusd.traces.trace import Run, Trace

COLUMNS = ("plan", "stage", "iteration", "instruction", "microbatch", "time_s")
ITERATION_COLUMNS = ("plan", "stage", "iteration", "iteration_time_s")

_INSTRUCTIONS = ("forward", "backward")
_WARM_UP = "the first of each plan warms up"

_Place = tuple[int, int]  # plan, iteration
_Times = Mapping[Computation, float]


def read(columns: Columns) -> Trace:
    """Raises TraceError for a computation that is there twice or missing."""
    found = _computations(columns)
    times = _beside(columns.path)
    stages = 1 + max(c.rank for c in next(iter(found.values())))
    microbatches = 1 + max(c.microbatch for c in next(iter(found.values())))
    order = [c for rank in one_f_one_b(stages, microbatches) for c in rank]
    runs: dict[int, list[Observation]] = defaultdict(list)
    left_out: dict[int, int] = defaultdict(int)
    for place, seconds in sorted(found.items()):
        plan, number = place
        _check_whole(columns.path, place, seconds, order)
        if number == 0:
            left_out[plan] += 1
            continue
        told = tuple((computation, seconds[computation]) for computation in order)
        runs[plan].append(
            Observation(replica=0, number=number, computations=told, time_s=times.get(place))
        )
    return Trace(columns.path, "a run of the Perseus artifact", _runs(runs, left_out))


def read_iterations(columns: Columns) -> Trace:
    """Iteration times alone."""
    runs: dict[int, list[Observation]] = defaultdict(list)
    left_out: dict[int, int] = defaultdict(int)
    for (plan, number), time_s in sorted(_iteration_times(columns).items()):
        if number == 0:
            left_out[plan] += 1
            continue
        runs[plan].append(Observation(replica=0, number=number, computations=(), time_s=time_s))
    return Trace(columns.path, "iteration times of the Perseus artifact", _runs(runs, left_out))


def _runs(found: Mapping[int, Sequence[Observation]], left_out: Mapping[int, int]) -> list[Run]:
    return [
        Run(f"plan {plan}", own, left_out={_WARM_UP: left_out[plan]} if left_out[plan] else {})
        for plan, own in found.items()
    ]


def _computations(columns: Columns) -> dict[_Place, dict[Computation, float]]:
    plans, iterations = columns.integers("plan"), columns.integers("iteration")
    stages, microbatches = columns.integers("stage"), columns.integers("microbatch")
    seconds, words = columns.seconds("time_s", zero=False), columns.words("instruction")
    found: dict[_Place, dict[Computation, float]] = defaultdict(dict)
    rows = zip(
        plans.tolist(), iterations.tolist(), stages.tolist(), microbatches.tolist(), words,
        seconds.tolist(), strict=True,
    )  # fmt: skip
    for row, (plan, iteration, stage, microbatch, instruction, time_s) in enumerate(rows):
        if instruction not in _INSTRUCTIONS:
            raise TraceError(
                f"{columns.where(row)}: instruction is {instruction}: forward or backward"
            )
        computation = Computation(stage, 0, instruction, microbatch)
        if computation in found[plan, iteration]:
            raise TraceError(
                f"{columns.where(row)}: {instruction} {microbatch} of stage {stage} is there "
                f"twice in iteration {iteration} of plan {plan}: keep one"
            )
        found[plan, iteration][computation] = time_s
    return found


def _check_whole(path: Path, place: _Place, seconds: _Times, order: Sequence[Computation]) -> None:
    if missing := next((c for c in order if c not in seconds), None):
        raise TraceError(
            f"{path}: iteration {place[1]} of plan {place[0]} lacks {missing.instruction} "
            f"{missing.microbatch} of stage {missing.rank}: leave that iteration's rows away"
        )
    if len(seconds) > len(order):
        extra = next(c for c in seconds if c not in set(order))
        raise TraceError(
            f"{path}: iteration {place[1]} of plan {place[0]} has {extra.instruction} "
            f"{extra.microbatch} of stage {extra.rank}, which the first iteration has not"
        )


def _beside(path: Path) -> Mapping[_Place, float]:
    """Iteration times of the file that belongs to this one, where it is there."""
    stem, word, _ = path.name.rpartition("_computations")
    beside = path.with_name(f"{stem}_iterations.csv")
    if not word or not beside.is_file():
        return {}
    columns = read_csv(beside)
    return _iteration_times(columns) if columns.names.issuperset(ITERATION_COLUMNS) else {}


def _iteration_times(columns: Columns) -> dict[_Place, float]:
    """The slowest stage's: all wait for it."""
    plans, iterations = columns.integers("plan"), columns.integers("iteration")
    seconds = columns.seconds("iteration_time_s", zero=False)
    found: dict[_Place, float] = {}
    places = np.stack([plans, iterations], axis=1).tolist()
    for (plan, iteration), time_s in zip(places, seconds.tolist(), strict=True):
        found[plan, iteration] = max(found.get((plan, iteration), 0.0), time_s)
    return found
