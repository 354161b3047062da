"""The closed loop in virtual time: an emulated job, its GPUs and the daemon's core, no waiting.

The same core that runs in the daemon is fed with the events that an emulated job would send, and
its clock writes act on GPUs that follow `gpus.physics`. Hundreds of iterations take about a second,
so decisions can be studied over many seeds. What real processes, sockets and timers add is
emulated only as a random delay of events.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from perseus_hooks.events import Hello, StageEnd, StageStart

from perseusd.core.actions import Action, Notice, RequestPlan, SetClock
from perseusd.core.controller import Controller, job_name
from perseusd.core.job import Job
from perseusd.core.knowledge import GpuFacts
from perseusd.core.model import Computation, PlanResult, Problem
from perseusd.core.settings import Settings
from perseusd.emulation.coordinator import SYNCHRONISATION_NS, Straggler
from perseusd.emulation.workloads import Workload
from perseusd.gpus.physics import ClockChange, ClockHistory, WorkCurve, run_work
from perseusd.gpus.simulated import SPECS

_S = 1_000_000_000

Solver = Callable[[Problem], PlanResult]


@dataclass(frozen=True)
class Conditions:
    """What the emulated node is like; durations in seconds."""

    noise: float = 0.01
    seed: int = 0
    event_delay_s: float = 0.0003
    """Mean lateness of an event's stamp, exponentially distributed."""
    counter_tick_s: float = 0.05
    poll_s: float = 0.02
    write_latency_s: float = 0.005
    settle_s: float = 0.001
    planning_s: float = 2.0
    """What a plan takes in virtual time."""
    straggler: Straggler | None = None


@dataclass
class _FastGpu:
    """A GPU's clock, its present work, and its energy as pieces of constant power."""

    curves: dict[str, WorkCurve]
    clocks: Sequence[int]
    blocking_w: float
    changes: list[ClockChange] = field(default_factory=list)
    writes: int = 0
    _at: list[int] = field(default_factory=lambda: [0])
    _joules: list[float] = field(default_factory=lambda: [0.0])
    _watts: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.changes.append(ClockChange(0, len(self.clocks) - 1))
        self._watts.append(self.blocking_w)

    def history(self) -> ClockHistory:
        return ClockHistory(tuple(self.changes[-16:]))

    def draw(self, now_ns: int, watts: float) -> None:
        self._joules.append(self.energy(now_ns))
        self._at.append(now_ns)
        self._watts.append(watts)

    def energy(self, at_ns: int) -> float:
        piece = bisect.bisect_right(self._at, at_ns) - 1
        return self._joules[piece] + self._watts[piece] * (at_ns - self._at[piece]) / _S


@dataclass
class _FastRank:
    rank: int
    order: Sequence[Computation]
    gpu: _FastGpu
    position: int = 0
    ready_ns: dict[Computation, int] = field(default_factory=dict)
    free_ns: int = 0
    running: tuple[int, float] | None = None
    """(start, noise factor) of the computation at `position`."""
    version: int = 0
    sequence: int = 0


@dataclass(frozen=True)
class FastIteration:
    """One iteration as it truly was."""

    number: int
    state: str
    time_s: float
    energy_j: float
    writes: int


class FastTime:
    """Runs `iterations` of a workload under the core; see `run`."""

    def __init__(
        self,
        workload: Workload,
        solve: Solver,
        conditions: Conditions,
        settings: Settings | None = None,
        microbatches: int | None = None,
    ) -> None:
        self.workload, self.solve, self.conditions = workload, solve, conditions
        self.settings = settings or Settings()
        self.random = random.Random(conditions.seed)
        pipeline = workload.pipeline(microbatches)
        clocks = workload.clocks_mhz
        self.ranks = [
            _FastRank(
                r,
                order,
                _FastGpu(
                    {i: workload.curves[r, i] for i in dict.fromkeys(c.instruction for c in order)},
                    clocks,
                    workload.blocking_power_w,
                ),
            )
            for r, order in enumerate(pipeline.orders)
        ]
        self.inputs: dict[Computation, list[Computation]] = {}
        self.outputs: dict[Computation, list[Computation]] = {}
        for edge in pipeline.edges:
            self.inputs.setdefault(edge.after, []).append(edge.before)
            self.outputs.setdefault(edge.before, []).append(edge.after)
        self.lag_ns = int(workload.communication_s * _S)
        self.full_ns = int(workload.full_clock_time_s(microbatches) * _S)
        facts = {
            f"GPU-{r}": GpuFacts(f"GPU-{r}", SPECS[workload.gpu].name, tuple(clocks))
            for r in range(len(self.ranks))
        }
        self.controller = Controller(self.settings, facts)
        self.iteration, self.iteration_start_ns, self.writer_free_ns = -1, 0, 0
        self.done: list[FastIteration] = []
        self.notices: list[str] = []
        self._heap: list[tuple[int, int, Callable[[int], None]]] = []
        self._order = itertools.count()
        self._pending: dict[int, int | None] = {}
        self._timer_ns: int | None = None
        self._energy_before = 0.0
        self._writes_before = 0
        self._finished = 0
        self._state_then = "none"
        self._last_event: dict[int, int] = {}

    @property
    def job(self) -> Job:
        return next(iter(self.controller.jobs.values()))

    def run(self, iterations: int) -> list[FastIteration]:
        """Returns every iteration's truth."""
        for rank in self.ranks:
            self._act(0, self.controller.hello(str(rank.rank), "fast", self._hello(rank)))
        self._at(0, self._poll)
        self._at(1_000_000, self._begin)
        while len(self.done) < iterations:
            now, _, call = heapq.heappop(self._heap)
            call(now)
        return self.done

    def _hello(self, rank: _FastRank) -> Hello:
        return Hello(
            job="job", rank=rank.rank, world_size=len(self.ranks), local_rank=rank.rank,
            stage=rank.rank, stages=len(self.ranks), replica=0, replicas=1, schedule="1f1b",
            gpus=(f"GPU-{rank.rank}",), time_source="emulated", uses_cuda=False,
            slowdown_budget=None, hostname="fast",
        )  # fmt: skip

    def _at(self, when_ns: int, call: Callable[[int], None]) -> None:
        heapq.heappush(self._heap, (when_ns, next(self._order), call))

    # --- the job ----------------------------------------------------------------------------

    def _begin(self, now: int) -> None:
        self._finish_iteration(now)
        self.iteration += 1
        self.iteration_start_ns = now
        straggler = self.conditions.straggler
        if straggler is not None and self.iteration in (straggler.start, straggler.end):
            factor = straggler.factor if straggler.active(self.iteration) else None
            name = job_name("fast", self._hello(self.ranks[0]))
            self._act(now, self.controller.announce_straggler(name, factor))
        self._finished = 0
        for rank in self.ranks:
            rank.position, rank.ready_ns, rank.free_ns = 0, {}, now
        for rank in self.ranks:
            self._try_start(rank, now)

    def _finish_iteration(self, now: int) -> None:
        energy = sum(r.gpu.energy(now) for r in self.ranks)
        writes = sum(r.gpu.writes for r in self.ranks)
        if self.iteration >= 0:
            self.done.append(
                FastIteration(
                    self.iteration,
                    self._state_then,
                    (now - self.iteration_start_ns) / _S,
                    energy - self._energy_before,
                    writes - self._writes_before,
                )
            )
        self._energy_before, self._writes_before = energy, writes
        self._state_then = self.job.state.value if self.controller.jobs else "none"

    def _try_start(self, rank: _FastRank, now: int) -> None:
        if rank.running is not None or rank.position >= len(rank.order):
            return
        computation = rank.order[rank.position]
        needed = self.inputs.get(computation, ())
        if any(before not in rank.ready_ns for before in needed):
            return
        start = max([rank.free_ns, *(rank.ready_ns[b] for b in needed)])
        if start > now:
            version = rank.version
            self._at(start, lambda t: self._try_start(rank, t) if rank.version == version else None)
            return
        factor = self.random.lognormvariate(0, self.conditions.noise)
        rank.running = (now, factor)
        self._power(rank, now)
        self._event(rank, now, True)
        self._predict(rank)

    def _predict(self, rank: _FastRank) -> None:
        assert rank.running is not None
        rank.version += 1
        version = rank.version
        start, factor = rank.running
        curve = rank.gpu.curves[rank.order[rank.position].instruction]
        end = run_work(curve, rank.gpu.history(), start, None, factor).end_ns
        assert end is not None
        self._at(end, lambda t: self._end(rank, t) if rank.version == version else None)

    def _end(self, rank: _FastRank, now: int) -> None:
        computation = rank.order[rank.position]
        rank.running = None
        rank.version += 1
        rank.gpu.draw(now, rank.gpu.blocking_w)
        self._event(rank, now, False)
        rank.free_ns = now
        rank.position += 1
        for after in self.outputs.get(computation, ()):
            other = self.ranks[after.rank]
            lag = self.lag_ns if other is not rank else 0
            other.ready_ns[computation] = now + lag
            self._try_start(other, now)
        self._try_start(rank, now)
        if rank.position == len(rank.order):
            self._finished += 1
            if self._finished == len(self.ranks):
                self._synchronise(now)

    def _synchronise(self, now: int) -> None:
        straggler, end = self.conditions.straggler, now
        if straggler is not None and straggler.active(self.iteration):
            end = max(now, self.iteration_start_ns + int(straggler.factor * self.full_ns))
        self._at(end + SYNCHRONISATION_NS, self._begin)

    def _power(self, rank: _FastRank, now: int) -> None:
        curve = rank.gpu.curves[rank.order[rank.position].instruction]
        rank.gpu.draw(now, curve.power_w(rank.gpu.history().index_at(now)))

    # --- what the daemon sees and does ------------------------------------------------------

    def _event(self, rank: _FastRank, now: int, start: bool) -> None:
        computation = rank.order[rank.position]
        delay = int(self.random.expovariate(1 / self.conditions.event_delay_s) * _S)
        iteration = self.iteration
        position = rank.position

        def deliver(at: int) -> None:
            rank.sequence += 1
            event = (
                StageStart(
                    rank.sequence, at, position, computation.instruction,
                    computation.microbatch, 0, None, iteration,
                )
                if start
                else StageEnd(rank.sequence, at, position)
            )  # fmt: skip
            self._act(at, self.controller.stage_event(str(rank.rank), event, at))

        at_ns = max(now + delay, self._last_event.get(rank.rank, 0) + 1)  # never out of order
        self._last_event[rank.rank] = at_ns
        self._at(at_ns, deliver)

    def _poll(self, now: int) -> None:
        for rank in self.ranks:
            tick = int(self.conditions.counter_tick_s * _S)
            phase = rank.rank * 7_300_000
            ticked = (now - phase) // tick * tick + phase
            self.controller.energy(f"GPU-{rank.rank}", now, rank.gpu.energy(max(ticked, 0)))
        self._act(now, self.controller.tick(now))
        self._at(now + int(self.conditions.poll_s * _S), self._poll)

    def _act(self, now: int, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case SetClock():
                    self._request(int(action.uuid[4:]), action.clock_mhz, now)
                case RequestPlan():
                    self._plan(action, now)
                case Notice():
                    self.notices.append(f"{self.iteration}: {action.text}")
        due = self.controller.next_due_ns()
        if due is not None and (self._timer_ns is None or due < self._timer_ns):
            self._timer_ns = due
            self._at(max(due, now), self._timer)

    def _timer(self, now: int) -> None:
        self._timer_ns = None
        self._act(now, self.controller.tick(now))

    def _plan(self, request: RequestPlan, now: int) -> None:
        answer = self.solve(request.problem)
        self._at(
            now + int(self.conditions.planning_s * _S),
            lambda t: self._act(t, self.controller.planned(request.job, request.request, answer)),
        )

    def _request(self, gpu: int, clock_mhz: int | None, now: int) -> None:
        waiting = gpu in self._pending
        self._pending[gpu] = clock_mhz
        if waiting:
            return
        latency = int(self.conditions.write_latency_s * _S)
        start = max(now, self.writer_free_ns)
        self.writer_free_ns = start + latency
        self._at(start + latency, lambda t: self._written(gpu, start if start < t else t, t, now))

    def _written(self, gpu: int, start: int, now: int, asked: int) -> None:
        clock_mhz = self._pending.pop(gpu)
        rank = self.ranks[gpu]
        index = len(rank.gpu.clocks) - 1
        if clock_mhz is not None:
            index = rank.gpu.clocks.index(clock_mhz)
        rank.gpu.writes += 1
        self.controller.written(f"GPU-{gpu}", clock_mhz, asked, now)
        effective = now + int(self.conditions.settle_s * _S)
        self._at(effective, lambda t: self._settle(rank, index, t))

    def _settle(self, rank: _FastRank, index: int, now: int) -> None:
        rank.gpu.changes.append(ClockChange(now, index))
        if rank.running is not None:
            self._power(rank, now)
            self._predict(rank)
