"""lowtime, the solver of Perseus's authors, on our problems: `pip install 'perseusd[bench]'`.

Every computation is an operation with the measured points of its kind, their cost fitted by
lowtime's exponential model, on a graph with the same precedences as ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import networkx
import numpy as np
from lowtime.cost_model import ExponentialModel
from lowtime.graph_utils import add_sink_node, add_source_node
from lowtime.operation import (
    CandidateExecutionOptions,
    ExecutionOption,
    Operation,
    OperationSpec,
)
from lowtime.solver import PhillipsDessouky

from perseusd.core.graph import Graph
from perseusd.core.model import Curve, Problem

UNIT_S = 0.001


class Step(NamedTuple):
    """One point of its frontier.

    claimed_s: by its fitted, quantised durations.  true_s, true_cost_j: of its clocks, as measured;
        cost as in perseusd.core.planner.instance.
    """

    claimed_s: float
    true_s: float
    true_cost_j: float


def walk(problem: Problem, *, pareto_first: bool, unit_s: float = UNIT_S) -> Iterator[Step]:
    """Its whole frontier, from the longest time down.

    pareto_first: keep the points that no other beats in time and energy, then subtract blocking
        power, as the artifact of the paper did; else subtract first, as its users do today.
    """
    graph = Graph.from_pipeline(problem.pipeline)
    operations, points = _operations(problem, graph, unit_s, pareto_first=pareto_first)
    dag = networkx.DiGraph()
    for node, operation in enumerate(operations):
        dag.add_node(node, op=operation)
    dag.add_edges_from(zip(graph.tail.tolist(), graph.head.tolist(), strict=True))
    add_source_node(dag, len(graph))
    add_sink_node(dag, len(graph) + 1)
    dag.graph["source_node"], dag.graph["sink_node"] = len(graph), len(graph) + 1
    for result in PhillipsDessouky(dag).run():
        chosen = [
            points[kind][operation.assigned_knob]
            for kind, operation in zip(graph.kind_index.tolist(), operations, strict=True)
        ]
        time, cost = np.array(chosen).T
        true_s = float(graph.makespan(np.ascontiguousarray(time)))
        yield Step(result.quant_time * unit_s, true_s, float(cost.sum()))


def _operations(
    problem: Problem, graph: Graph, unit_s: float, *, pareto_first: bool
) -> tuple[list[Operation], list[dict[int, tuple[float, float]]]]:
    """An operation for every node; per kind, (time s, cost J) at each clock."""
    specs, points = [], []
    for kind in graph.kinds:
        curve, power = problem.curves[kind], problem.blocking_power_w[kind.rank]
        at = zip(curve.clock_mhz, curve.time_s, curve.energy_j, strict=True)
        points.append({clock: (time, energy - power * time) for clock, time, energy in at})
        kept = _pareto(curve) if pareto_first else list(curve.clock_mhz)
        options = CandidateExecutionOptions(
            [ExecutionOption(points[-1][c][0], unit_s, points[-1][c][1], c) for c in kept]
        )
        specs.append(OperationSpec(options, ExponentialModel(options)))
    return [Operation(specs[k]) for k in graph.kind_index.tolist()], points


def _pareto(curve: Curve) -> list[int]:
    """Clocks that no other beats in both time and energy."""
    found = list(zip(curve.time_s, curve.energy_j, curve.clock_mhz, strict=True))
    return [c for t, e, c in found if not any(u < t and f < e for u, f, _ in found)]
