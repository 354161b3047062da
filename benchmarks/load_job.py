"""A pipeline job of one process, light enough to make thousands of events a second.

Its computations run on simulated GPUs and take the time that their clocks let them; every rank has
a connection of its own to the daemon and speaks the wire as the hooks do. Used by load.py.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import random
import select
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import zmq
from perseus_hooks.events import Event, Goodbye, Hello, StageEnd, StageStart, Welcome
from perseus_hooks.wire import decode, encode

from perseusd.core.model import Computation
from perseusd.core.schedules import one_f_one_b
from perseusd.emulation.workloads import load_workload
from perseusd.gpus.physics import WorkCurve
from perseusd.gpus.simulated import SimulatedEngine, open_node

BETWEEN_ITERATIONS_NS = 5_000_000
UNCHECKED_SHARE = 0.7
"""Of what is left of a computation: a raised clock hardly ends it sooner."""
CHECK_NS = 2_000_000
WELCOME_MS = 10_000
INSTRUCTIONS = ("forward", "backward")
_TOKENS = count(1)


def quick_context() -> zmq.Context[zmq.Socket[bytes]]:
    """Its thread sends at once, where that is permitted: here many ranks share one core, and what
    their messages wait for it would be taken for the daemon's time."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        context.set(zmq.THREAD_SCHED_POLICY, os.SCHED_FIFO)
        context.set(zmq.THREAD_PRIORITY, 1)
    return context


def connected(context: zmq.Context[zmq.Socket[bytes]], directory: Path) -> zmq.Socket[bytes]:
    """A client's connection to the daemon of this runtime directory."""
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.SNDHWM, 100_000)
    socket.connect(f"ipc://{directory}/hooks.sock")
    return socket


def greet(socket: zmq.Socket[bytes], job: str, rank: int, ranks: int, gpu: str) -> None:
    """Say hello, and wait for the daemon's welcome."""
    places = (ranks, rank, rank, ranks, 0, 1)
    hello = Hello(job, rank, *places, "1f1b", (gpu,), "emulated", True, None, "here")
    socket.send(encode(hello))
    if not socket.poll(WELCOME_MS) or not isinstance(decode(socket.recv()), Welcome):
        raise SystemExit(f"rank {rank} of {job} was not welcomed")


@dataclass
class Rank:
    """One stage: its GPU, its connection, and where it stands in the iteration."""

    number: int
    gpu: str
    engine: SimulatedEngine
    socket: zmq.Socket[bytes]
    order: Sequence[Computation]
    position: int = 0
    free_ns: int = 0
    sequence: int = 0
    token: int = 0
    awaited: int = 0
    """The newest of its entries among what is due; older ones count no more."""
    running: bool = False

    def say(self, event: Event) -> None:
        self.socket.send(encode(event), zmq.NOBLOCK)

    def number_of_next(self) -> int:
        self.sequence += 1
        return self.sequence

    def start(self, now_ns: int, instruction: str, microbatch: int, iteration: int) -> None:
        self.token = next(_TOKENS)
        stage = self.number
        self.say(
            StageStart(
                self.number_of_next(),
                now_ns,
                self.token,
                instruction,
                microbatch,
                0,
                stage,
                iteration,
            )
        )

    def end(self, now_ns: int) -> None:
        self.say(StageEnd(self.number_of_next(), now_ns, self.token))


@dataclass
class LoadJob:
    """GPT-3 175B's eight uneven stages, `faster` times as fast, so that events come as often.

    probes: how many computations of an iteration are followed by a moment of `other` work, which
    has to run at full clock. told: (rank, stamp) of each of those.
    """

    node_path: Path
    runtime_dir: Path
    microbatches: int
    faster: float
    probes: int = 0
    seed: int = 0
    iteration: int = 0
    told: list[tuple[int, int]] = field(default_factory=list)
    events: int = 0

    def __post_init__(self) -> None:
        workload = load_workload("gpt3-175b", "a100-sxm")
        self._random = random.Random(self.seed)
        self._context = quick_context()
        self._node = open_node(self.node_path)
        self._due: list[tuple[int, int, int]] = []
        self._serial = count()
        self._inputs: dict[tuple[int, str, int], int] = {}
        self.ranks = []
        for stage, order in enumerate(one_f_one_b(workload.stages, self.microbatches)):
            gpu = self._node.gpus[stage]
            engine = gpu.engine()
            curves = [workload.curves[stage, name] for name in INSTRUCTIONS]
            engine.load([self._quicker(curve) for curve in curves])
            self.ranks.append(
                Rank(
                    stage, gpu.info.uuid, engine, connected(self._context, self.runtime_dir), order
                )
            )
        for rank in self.ranks:
            greet(rank.socket, "load", rank.number, len(self.ranks), rank.gpu)

    def run(self, until_ns: int) -> None:
        """Iterations until then."""
        start_ns = time.monotonic_ns()
        while start_ns < until_ns:
            start_ns = self._iterate(start_ns)

    def close(self) -> None:
        for rank in self.ranks:
            rank.say(Goodbye(rank.number_of_next(), time.monotonic_ns()))
            rank.engine.close()
        self._context.destroy(linger=100)
        self._node.close()

    def _quicker(self, curve: WorkCurve) -> WorkCurve:
        times = tuple(t / self.faster for t in curve.time_s)
        return WorkCurve(times, tuple(e / self.faster for e in curve.energy_j))

    def _iterate(self, start_ns: int) -> int:
        self._inputs.clear()
        every = [(r, p) for r in range(len(self.ranks)) for p in range(1, 2 * self.microbatches)]
        probed = set(self._random.sample(every, self.probes))
        for rank in self.ranks:
            rank.position, rank.free_ns = 0, start_ns
            self._wake(rank, start_ns)
        while self._due:
            when_ns, serial, number = heapq.heappop(self._due)
            if serial == self.ranks[number].awaited:
                self._sleep_until(when_ns)
                self._look(self.ranks[number], probed)
        self.iteration += 1
        return max(rank.free_ns for rank in self.ranks) + BETWEEN_ITERATIONS_NS

    def _look(self, rank: Rank, probed: set[tuple[int, int]]) -> None:
        if rank.running:
            end_ns = rank.engine.end_ns()
            if end_ns is None:
                self._check_later(rank)
                return
            self._ended(rank, end_ns, probed)
        if rank.position < len(rank.order):
            self._start(rank)

    def _start(self, rank: Rank) -> None:
        todo = rank.order[rank.position]
        input_ns = self._input(rank.number, todo)
        if input_ns is None:
            return  # who makes its input wakes it
        begin_ns = max(rank.free_ns, input_ns)
        if begin_ns > time.monotonic_ns():
            self._wake(rank, begin_ns)
            return
        rank.start(time.monotonic_ns(), todo.instruction, todo.microbatch, self.iteration)
        rank.engine.submit(INSTRUCTIONS.index(todo.instruction), begin_ns)
        rank.running = True
        self.events += 2
        self._check_later(rank)

    def _check_later(self, rank: Rank) -> None:
        now_ns = time.monotonic_ns()
        left_ns = (rank.engine.predicted_end_ns() or now_ns) - now_ns
        self._wake(
            rank, now_ns + (int(left_ns * UNCHECKED_SHARE) if left_ns > CHECK_NS else left_ns)
        )

    def _ended(self, rank: Rank, end_ns: int, probed: set[tuple[int, int]]) -> None:
        todo = rank.order[rank.position]
        rank.running, rank.free_ns = False, end_ns
        rank.end(time.monotonic_ns())
        rank.position += 1
        self._inputs[rank.number, todo.instruction, todo.microbatch] = end_ns
        if (rank.number, rank.position) in probed:
            now_ns = time.monotonic_ns()
            rank.start(now_ns, "other", 0, self.iteration)
            rank.end(time.monotonic_ns())
            self.told.append((rank.number, now_ns))
        after = rank.number + (1 if todo.instruction == "forward" else -1)
        if 0 <= after < len(self.ranks) and not self.ranks[after].running:
            self._wake(self.ranks[after], end_ns)

    def _input(self, stage: int, todo: Computation) -> int | None:
        """When what it needs was there; None where it is not made yet."""
        if todo.instruction == "forward":
            source = (stage - 1, "forward") if stage else None
        else:
            last = stage == len(self.ranks) - 1
            source = (stage, "forward") if last else (stage + 1, "backward")
        return 0 if source is None else self._inputs.get((*source, todo.microbatch))

    def _wake(self, rank: Rank, when_ns: int) -> None:
        rank.awaited = next(self._serial)
        heapq.heappush(self._due, (when_ns, rank.awaited, rank.number))

    @staticmethod
    def _sleep_until(when_ns: int) -> None:
        if (left_ns := when_ns - time.monotonic_ns()) > 0:
            select.select([], [], [], left_ns * 1e-9)
