"""What each rank does in an iteration, and what every step waits for."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from perseusd.core.model import Computation, Pipeline
from perseusd.emulation.fasttime.conditions import Conditions
from perseusd.emulation.fasttime.disturbances import (
    BatchChange,
    EvaluationPhase,
    LengthChange,
    of,
)
from perseusd.emulation.workloads import Workload


class Step(NamedTuple):
    """One computation. inputs: (rank, position) of those on other ranks that it waits for;
    outputs: ranks where something waits for it."""

    chunk: int
    instruction: str
    microbatch: int
    inputs: tuple[tuple[int, int], ...]
    outputs: tuple[int, ...]


Orders = tuple[tuple[Step, ...], ...]
"""Per rank of one replica, its steps."""


@dataclass(frozen=True)
class Program:
    """One iteration of every replica. lengths: what the sequences' length does to all durations."""

    orders: Orders
    microbatches: int
    evaluation: bool
    lengths: float


class Programs:
    """Which program each iteration runs."""

    def __init__(self, workload: Workload, conditions: Conditions, microbatches: int) -> None:
        self._workload, self._usual = workload, microbatches
        self._evaluations = of(EvaluationPhase, conditions.disturbances)
        self._batches = of(BatchChange, conditions.disturbances)
        self._lengths = of(LengthChange, conditions.disturbances)
        self._orders = cache(self._built)

    def of(self, iteration: int) -> Program:
        microbatches = self._usual
        for change in self._batches:
            if change.active(iteration):
                microbatches = change.microbatches
        lengths = 1.0
        for longer in self._lengths:
            if longer.active(iteration):
                lengths *= longer.factor
        evaluation = self.evaluation(iteration)
        if evaluation is not None and evaluation.microbatches is not None:
            microbatches = evaluation.microbatches
        orders = self._orders(microbatches, evaluation is not None)
        return Program(orders, microbatches, evaluation is not None, lengths)

    def evaluation(self, iteration: int) -> EvaluationPhase | None:
        return next((e for e in self._evaluations if e.active(iteration)), None)

    def _built(self, microbatches: int, evaluation: bool) -> Orders:
        pipeline = self._workload.pipeline(microbatches)
        return steps(forwards(pipeline) if evaluation else pipeline)


def forwards(pipeline: Pipeline) -> Pipeline:
    """The same without backward passes."""
    orders = tuple(
        tuple(c for c in order if c.instruction == "forward") for order in pipeline.orders
    )
    kept = {c for order in orders for c in order}
    edges = tuple(e for e in pipeline.edges if e.before in kept and e.after in kept)
    return Pipeline(orders, edges)


def steps(pipeline: Pipeline) -> Orders:
    place = {c: (r, p) for r, order in enumerate(pipeline.orders) for p, c in enumerate(order)}
    inputs: dict[Computation, list[tuple[int, int]]] = defaultdict(list)
    outputs: dict[Computation, list[int]] = defaultdict(list)
    for before, after, _ in pipeline.edges:
        if before.rank != after.rank:
            inputs[after].append(place[before])
            outputs[before].append(after.rank)
    return tuple(
        tuple(
            Step(c.chunk, c.instruction, c.microbatch, tuple(inputs[c]), tuple(outputs[c]))
            for c in order
        )
        for order in pipeline.orders
    )
