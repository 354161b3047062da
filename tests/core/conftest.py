"""A scripted training job that talks to the real controller in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from perseus_hooks.events import Hello, StageEnd, StageStart

from perseusd.core.actions import Action, Notice, Refuse, RequestPlan, SetClock
from perseusd.core.controller import Controller
from perseusd.core.graph import Graph
from perseusd.core.jobs.job import Job
from perseusd.core.learned.knowledge import GpuFacts
from perseusd.core.model import Computation, Pipeline, Plan, PlanResult, Problem
from perseusd.core.schedules import one_f_one_b, pipeline
from perseusd.core.settings import Settings

CLOCKS = tuple(range(600, 1411, 15))
LOW_MHZ = 1200
MS = 1_000_000
WATTS = {"forward": 300.0, "iteration": 320.0, None: 80.0}
GRADIENT_WATTS = 350.0

Hook = Callable[["Node", int, Computation, bool], bool]


def lowering(problem: Problem) -> PlanResult:
    """A canned answer: rank 0 at LOW_MHZ throughout, everyone else at full clock."""
    clocks = tuple(
        tuple((LOW_MHZ if rank == 0 else None) for _ in order)
        for rank, order in enumerate(problem.pipeline.orders)
    )
    return PlanResult(Plan(clocks), 1, 1, 1, 1, 1, 1, 1, 0.1, 2, 0, 0)


@dataclass
class Node:
    """Ranks whose computations take 40 and 80 ms at any clock; GPU-r belongs to stage r.

    pipeline: what they run; 1F1B of `stages` and `microbatches` unless told.
    said: whether the trainer tells iteration numbers.
    """

    stages: int = 3
    microbatches: int = 4
    pipeline: Pipeline | None = None
    schedule: str | None = "1f1b"
    settings: Settings = field(default_factory=Settings)
    said: bool = True
    stretch: float = 1.0
    """Of every duration, from now on."""
    numbers: Callable[[int], int] = lambda i: i
    now_ns: int = 10**12
    iteration: int = 0
    log: list[tuple[int, Action]] = field(default_factory=list)
    clocks: dict[str, int | None] = field(default_factory=dict)
    asked: list[RequestPlan] = field(default_factory=list)
    answering: bool = True
    ticking: bool = True
    """Whether the controller is told that time passes."""
    silent: set[int] = field(default_factory=set)
    sequence: dict[int, int] = field(default_factory=dict)
    rank_sending: int = -1
    """Whose event is being sent, for `numbers` to look at."""

    def __post_init__(self) -> None:
        known = one_f_one_b(self.stages, self.microbatches)
        self.graph = Graph.from_pipeline(self.pipeline or pipeline(known, 0.0005))
        self.stages = self.graph.ranks
        facts = {f"GPU-{r}": GpuFacts(f"GPU-{r}", "A100", CLOCKS, r) for r in range(self.stages)}
        self.controller = Controller(self.settings, facts)
        self.joules = dict.fromkeys(range(self.stages), 0.0)
        self.running: dict[int, str | None] = dict.fromkeys(range(self.stages))
        self._polled_ns = self.now_ns
        self._shown = dict(self.joules)

    # --- doing ---

    def hello(self, rank: int) -> Hello:
        return Hello(
            job="job", rank=rank, world_size=self.stages, local_rank=rank, stage=rank,
            stages=self.stages, replica=0, replicas=1, schedule=self.schedule,
            gpus=(f"GPU-{rank}",), time_source="emulated", uses_cuda=False,
            slowdown_budget=None, hostname="here",
        )  # fmt: skip

    def join(self, *ranks: int, **changes: object) -> None:
        for rank in ranks or range(self.stages):
            self.sequence[rank] = 0
            hello = replace(self.hello(rank), **changes)  # type: ignore[arg-type]
            self.do(self.controller.hello(str(rank), "me", hello))

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            self.log.append((self.now_ns, action))
            if isinstance(action, SetClock):
                self.clocks[action.uuid] = action.clock_mhz
                end_ns = self.now_ns + 5 * MS
                self.controller.written(action.uuid, action.clock_mhz, self.now_ns, end_ns)
            if isinstance(action, RequestPlan):
                self.asked.append(action)

    def answer(self, result: PlanResult | str | None = None) -> None:
        """Answer the newest request, by default with `lowering`."""
        request = self.asked[-1]
        answer = lowering(request.problem) if result is None else result
        self.asked.clear()
        self.do(self.controller.planned(request.job, request.request, answer))

    def pass_time(self, until_ns: int) -> None:
        """Counters, silence and what is due, in steps of 20 ms and at each due moment."""
        while self.now_ns < until_ns:
            due = self.controller.next_due_ns() if self.ticking else None
            next_ns = min(self._polled_ns + 20 * MS, until_ns, due or until_ns)
            step_ns = max(next_ns, self.now_ns + 1)
            for rank, what in self.running.items():
                self.joules[rank] += (
                    WATTS.get(what, GRADIENT_WATTS) * (step_ns - self.now_ns) * 1e-9
                )
            self.now_ns = step_ns
            if step_ns >= self._polled_ns + 20 * MS:
                self._polled_ns = step_ns
                for rank, joules in self.joules.items():
                    self.controller.energy(f"GPU-{rank}", step_ns, joules)
            if self.ticking:
                self.do(self.controller.tick(self.now_ns))

    def iterate(self, times: int = 1, hook: Hook | None = None) -> None:
        """Whole iterations. hook(node, rank, computation, starts) → whether to send that event."""
        for _ in range(times):
            self._iterate(hook or (lambda *_: True))
            if self.answering and self.asked:
                self.answer()

    def until(self, state: str, most: int = 60) -> None:
        for _ in range(most):
            if self.state == state:
                return
            self.iterate()
        raise AssertionError(f"still {self.state} after {most} iterations: {self.job.reason}")

    def _iterate(self, hook: Hook) -> None:
        durations = np.array(
            [
                (0.08 if c.instruction == "backward" else 0.04) * self.stretch
                for c in self.graph.nodes
            ]
        )
        start = self.graph.earliest(durations)
        events = []
        for k, c in enumerate(self.graph.nodes):
            events.append((int(start[k] * 1e9), 1, c))
            events.append((int((start[k] + durations[k]) * 1e9) - 1, 0, c))
        origin = self.now_ns
        for at, starts, c in sorted(events, key=lambda e: e[:2]):
            self.pass_time(origin + at)
            self.running[c.rank] = c.instruction if starts else None
            if c.rank in self.silent or str(c.rank) not in self.controller._clients:
                continue
            self.sequence[c.rank] = self.sequence.get(c.rank, 0) + 1
            if hook(self, c.rank, c, bool(starts)):
                self.send(c, bool(starts))
        self.pass_time(self.now_ns + 20 * MS)
        self.iteration += 1

    def send(self, c: Computation, starts: bool) -> None:
        self.rank_sending = c.rank
        number = self.numbers(self.iteration) if self.said else None
        sequence = self.sequence[c.rank]
        event: StageStart | StageEnd = StageEnd(sequence, self.now_ns, 7)
        if starts:
            event = StageStart(
                sequence, self.now_ns, 7, c.instruction, c.microbatch, c.chunk, None, number
            )
        self.do(self.controller.stage_event(str(c.rank), event, self.now_ns))

    # --- looking ---

    @property
    def job(self) -> Job:
        return self.controller.jobs["me:job"]

    @property
    def state(self) -> str:
        return self.job.state.value

    @property
    def lowered(self) -> list[str]:
        return sorted(u for u, clock in self.clocks.items() if clock is not None)

    def since(self, count: int) -> list[Action]:
        return [action for _, action in self.log[count:]]

    def writes(self, since: int = 0) -> list[SetClock]:
        return [a for a in self.since(since) if isinstance(a, SetClock)]

    def notices(self) -> list[str]:
        return [a.text for _, a in self.log if isinstance(a, Notice)]

    def refusals(self) -> list[Refuse]:
        return [a for _, a in self.log if isinstance(a, Refuse)]


@pytest.fixture
def node() -> Callable[..., Node]:
    """Makes a node with a scripted job on it: Node(…)."""
    return Node
