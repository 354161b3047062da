"""What is known of a pipeline whose order is understood; kept while the order stays the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from perseusd.core.clocklog import ClockLog, activities
from perseusd.core.graph import Graph
from perseusd.core.iterations import Assembly, JobIteration
from perseusd.core.knowledge import GpuFacts, Knowledge
from perseusd.core.learning import Explorer
from perseusd.core.model import Kind, Pipeline
from perseusd.core.pacing import PacedPlan, Pacer
from perseusd.core.settings import Settings

IMPURE = 0.2
"""Share of a computation at another clock above which its duration teaches nothing."""


@dataclass
class Episode:
    """One uninterrupted stretch in which every rank is followed; trouble starts another.

    early: whole iterations seen before the order was understood.
    ends: when each rank's last whole iteration ended.
    clear: understood iterations since the last trouble.
    """

    assembly: Assembly
    early: list[JobIteration] = field(default_factory=list)
    pacer: Pacer | None = None
    normal: PacedPlan | None = None
    ends: dict[int, int] = field(default_factory=dict)
    slowed_by_straggler: bool = False
    clear: int = 0


class Understanding:
    """A pipeline, its graph, and what its computations were seen to take."""

    def __init__(
        self, pipeline: Pipeline, gpus: Mapping[int, GpuFacts], settings: Settings
    ) -> None:
        """gpus: by rank, the GPU that stands for all of that stage's."""
        self.pipeline = pipeline
        self.graph = Graph.from_pipeline(pipeline)
        self.gpus = gpus
        self.knowledge = Knowledge(gpus)
        self.explorer = Explorer(
            pipeline,
            self.graph,
            gpus,
            settings.learning_slowdown,
            settings.min_clock_fraction,
        )

    def learn_from(
        self, iteration: JobIteration, ends: dict[int, int], logs: Mapping[str, ClockLog]
    ) -> None:
        """Durations and activities of a whole iteration join the knowledge."""
        model = self.knowledge.time_model()
        for rank, own in enumerate(iteration.ranks):
            log, top_mhz = logs[self.gpus[rank].uuid], self.gpus[rank].top_mhz
            since = ends.get(rank, own.spans[0].start_ns)
            self.knowledge.add_activities(rank, activities(rank, own.spans, since, log))
            ends[rank] = own.spans[-1].end_ns
            for span in own.spans:
                kind = Kind(rank, span.step.chunk, span.step.instruction)
                pieces = [((b - a) * 1e-9, c) for a, b, c in log.pieces(span.start_ns, span.end_ns)]
                whole = model.at_one_clock(kind, pieces, top_mhz, IMPURE) if pieces else None
                if whole is not None:
                    self.knowledge.durations.add(kind, *whole)

    def poll_counter(self, uuid: str, time_ns: int, energy_j: float) -> None:
        for rank, gpu in self.gpus.items():
            if gpu.uuid == uuid:
                self.knowledge.poll_counter(rank, time_ns, energy_j)

    def critical_shares(self, plan: PacedPlan) -> Sequence[tuple[int, float]]:
        """(rank, its share of the predicted critical path), largest first."""
        durations = plan.durations(self.graph)
        shares: dict[int, float] = {}
        for node in self.graph.critical_nodes(durations):
            rank = int(self.graph.rank[node])
            shares[rank] = shares.get(rank, 0.0) + float(durations[node])
        total = sum(shares.values())
        return sorted(((r, s / total) for r, s in shares.items()), key=lambda item: -item[1])
