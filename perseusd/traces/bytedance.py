"""Traces of ByteDance's straggler study (OSDI 2025): all operations of all ranks, sampled steps.

A row is one operation: `optype` with `start_ts` and `duration` in seconds on the rank's own clock,
`dp_rank` the replica, `mc` the model chunk, `mb_id` the microbatch (−1 for what is no computation).
Only order is taken from stamps. How long communication took is told by its two ends without
comparing their clocks: both operations end together, and each lasts from when its own side was
ready, so the shorter of the two is the transfer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

import numpy as np

from perseusd.core.model import Computation
from perseusd.core.stragglers import Observation
from perseusd.errors import TraceError
from perseusd.traces.columns import Columns
from perseusd.traces.trace import Run, Trace

COLUMNS = (
    "dp_rank", "stage", "rank", "step", "optype", "start_ts", "duration", "seq_id", "mc", "mb_id",
)  # fmt: skip

_COMPUTATIONS = {"forward-compute": "forward", "backward-compute": "backward"}
_TRANSFERS = ("forward-send", "forward-recv", "backward-send", "backward-recv")
_NO_LESS = -1  # of mc and mb_id


class _Row(NamedTuple):
    at: int
    replica: int
    stage: int
    step: int
    optype: str
    seconds: float
    sequence: int
    chunk: int
    microbatch: int


@dataclass
class _Step:
    """One replica's step while it is collected; transfers by (stage, optype, sequence)."""

    computations: list[tuple[Computation, float]] = field(default_factory=list)
    transfers: dict[tuple[int, str, int], float] = field(default_factory=dict)
    seen: set[Computation] = field(default_factory=set)


def read(columns: Columns) -> Trace:
    """Raises TraceError for a computation that is there twice, or without a microbatch."""
    steps: dict[tuple[int, int], _Step] = defaultdict(_Step)
    stages = 0
    for row in _rows(columns):
        stages = max(stages, row.stage + 1)
        _collect(columns, row, steps[row.step, row.replica])
    if not any(step.computations for step in steps.values()):
        raise TraceError(f"{columns.path}: no operation is one of {', '.join(_COMPUTATIONS)}")
    times = _times(columns)
    observations = [
        Observation(
            replica=replica,
            number=number,
            computations=tuple(sorted(step.computations, key=lambda item: item[0].rank)),
            lags=_lags(step.transfers, stages),
            time_s=times[number, replica],
        )
        for (number, replica), step in sorted(steps.items())
    ]
    run = Run(None, observations, ranks=_ranks(columns), replicas_told=True)
    return Trace(columns.path, "a trace of ByteDance's straggler study", [run])


def _rows(columns: Columns) -> Iterator[_Row]:
    """In the order in which each rank started them."""
    start = columns.seconds("start_ts")
    replica, stage = columns.integers("dp_rank"), columns.integers("stage")
    step, sequence = columns.integers("step"), columns.integers("seq_id")
    chunk = columns.integers("mc", _NO_LESS)
    microbatch = columns.integers("mb_id", _NO_LESS)
    seconds, words = columns.seconds("duration"), columns.words("optype")
    for at in np.lexsort((start, stage, replica, step)).tolist():
        yield _Row(
            at, int(replica[at]), int(stage[at]), int(step[at]), words[at], float(seconds[at]),
            int(sequence[at]), int(chunk[at]), int(microbatch[at]),
        )  # fmt: skip


def _collect(columns: Columns, row: _Row, step: _Step) -> None:
    if row.optype in _TRANSFERS:
        step.transfers[row.stage, row.optype, row.sequence] = row.seconds
    elif row.optype in _COMPUTATIONS:
        if row.microbatch < 0:
            raise TraceError(
                f"{columns.where(row.at)}: mb_id is {row.microbatch}: a computation needs its "
                "microbatch"
            )
        instruction = _COMPUTATIONS[row.optype]
        computation = Computation(row.stage, max(row.chunk, 0), instruction, row.microbatch)
        if computation in step.seen:
            raise TraceError(
                f"{columns.where(row.at)}: {row.optype} {row.microbatch} of stage {row.stage} is "
                f"there twice in step {row.step} of dp_rank {row.replica}: keep one rank of each "
                "stage"
            )
        step.seen.add(computation)
        step.computations.append((computation, row.seconds))


def _lags(
    transfers: Mapping[tuple[int, str, int], float], stages: int
) -> dict[tuple[int, int, str], float]:
    """Median transfer of every link: (rank before, rank after, instruction after)."""
    found: dict[tuple[int, int, str], list[float]] = defaultdict(list)
    for (stage, optype, sequence), seconds in transfers.items():
        instruction, _, end = optype.partition("-")
        if end != "send":
            continue
        receiver = (stage + (1 if instruction == "forward" else -1)) % stages
        other = transfers.get((receiver, f"{instruction}-recv", sequence))
        if other is not None:
            found[stage, receiver, instruction].append(min(seconds, other))
    return {link: median(transfer) for link, transfer in found.items()}


def _times(columns: Columns) -> dict[tuple[int, int], float]:
    """By (step, replica): the longest of its ranks' own spans, each on its own clock."""
    start, seconds = columns.seconds("start_ts"), columns.seconds("duration")
    keys = np.stack([columns.integers(n) for n in ("step", "dp_rank", "stage")], axis=1)
    places, of_row = np.unique(keys, axis=0, return_inverse=True)
    of_row = of_row.reshape(-1)
    first = np.full(len(places), np.inf)
    last = np.zeros(len(places))
    np.minimum.at(first, of_row, start)
    np.maximum.at(last, of_row, start + seconds)
    times: dict[tuple[int, int], float] = {}
    for (step, replica, _), span in zip(places.tolist(), (last - first).tolist(), strict=True):
        times[step, replica] = max(times.get((step, replica), 0.0), span)
    return times


def _ranks(columns: Columns) -> dict[tuple[int, int], int]:
    """(replica, stage) → the lowest rank that the trace tells there."""
    names: Sequence[str] = ("dp_rank", "stage", "rank")
    rows = np.unique(np.stack([columns.integers(n) for n in names], axis=1), axis=0)
    return {(replica, stage): rank for replica, stage, rank in rows[::-1].tolist()}
