"""One rank of an emulated training job: a real process, real hooks, a simulated GPU.

It keeps an *ideal timeline*: a computation starts when its rank and its input are both there, to
the nanosecond, and ends when its simulated GPU says so. The process sleeps until such a moment has
come in real time and then acts, so hooks are called when a training process would call them, while
lateness of the scheduler never adds up.

It talks over sockets that the launcher made: one to the launcher (JSON: setup, iterations, reports)
and one to each neighbour stage (an output is there from now on). When a neighbour dies it waits, as
a collective would; when the launcher dies or closes its socket, it ends.

Imports stay light: a job has many of these.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import select
import socket
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import perseus_hooks

from perseusd.gpus.physics import WorkCurve
from perseusd.gpus.simulated import SimulatedGpu, open_node

MESSAGE_BYTES = 1 << 18
_OUTPUT = struct.Struct("<qq")  # microbatch, the stamp from which the neighbour may use it
# A raised clock can end a computation early, but hardly in less than this share of what is left.
_UNCHECKED_SHARE = 0.7
_CHECK_NS = 2_000_000


class _Stopped(Exception):  # noqa: N818 - no error: how a worker is meant to end
    """The launcher is gone or asked this rank to stop."""


@dataclass(frozen=True)
class Setup:
    """What one rank is to do. `order` is [(instruction, microbatch)]; `curves` by instruction."""

    job: str
    rank: int
    stages: int
    node_path: str
    runtime_dir: str
    order: Sequence[tuple[str, int]]
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    communication_ns: int
    noise: float
    seed: int
    hooks: bool

    @classmethod
    def from_json(cls, text: bytes) -> Setup:
        values: dict[str, Any] = json.loads(text)
        return cls(**values)


class Worker:
    def __init__(
        self,
        setup: Setup,
        control: socket.socket,
        upstream: socket.socket | None,
        downstream: socket.socket | None,
    ) -> None:
        self._setup = setup
        self._control = control
        self._upstream = upstream
        self._downstream = downstream
        self._instructions = sorted(setup.curves)
        gpu = open_node(setup.node_path).gpus[setup.rank]
        self._gpu: SimulatedGpu = gpu
        self._engine = gpu.engine()
        curves = (setup.curves[name] for name in self._instructions)
        self._engine.load([WorkCurve(tuple(t), tuple(e)) for t, e in curves])
        if setup.hooks:
            self._configure_hooks(gpu.info.uuid)

    def run(self) -> None:
        """Iterations as the launcher calls them, until it stops calling."""
        try:
            self._control.send(json.dumps({"ready": self._setup.rank}).encode())
            while True:
                call = json.loads(self._heard())
                self._iterate(call["iteration"], call["start_ns"])
        finally:
            self._engine.close()

    def _iterate(self, iteration: int, start_ns: int) -> None:
        end_ns, spans = start_ns, []
        for position, (instruction, microbatch) in enumerate(self._setup.order):
            input_ns = self._input(instruction, microbatch)
            begin_ns = end_ns if input_ns is None else max(end_ns, input_ns)
            factor = self._noise(iteration, position)
            self._sleep_until(begin_ns)
            clock_mhz = self._gpu.clock_mhz()
            end_ns = self._compute(iteration, instruction, microbatch, begin_ns, factor)
            energy_j = self._gpu.true_energy_j(end_ns) - self._gpu.true_energy_j(begin_ns)
            spans.append((begin_ns, end_ns, clock_mhz, round(energy_j, 3)))
            self._pass_on(instruction, microbatch, end_ns + self._setup.communication_ns)
        report = {"iteration": iteration, "end_ns": end_ns, "spans": spans}
        self._control.send(json.dumps(report).encode())

    def _compute(
        self, iteration: int, instruction: str, microbatch: int, begin_ns: int, factor: float
    ) -> int:
        if self._setup.hooks:
            perseus_hooks.stage_start(instruction, microbatch=microbatch, iteration=iteration)
        self._engine.submit(self._instructions.index(instruction), begin_ns, factor)
        end_ns = self._until_ended()
        if self._setup.hooks:
            perseus_hooks.stage_end()
        return end_ns

    def _until_ended(self) -> int:
        """Sleep until the GPU is done; look again on the way, for its clock may have changed."""
        while (end_ns := self._engine.end_ns()) is None:
            now = time.monotonic_ns()
            left = (self._engine.predicted_end_ns() or now) - now
            self._sleep_until(now + (int(left * _UNCHECKED_SHARE) if left > _CHECK_NS else left))
        return end_ns

    def _input(self, instruction: str, microbatch: int) -> int | None:
        """When the neighbour's output is here; None where the first stage reads its own data."""
        source = self._upstream if instruction == "forward" else self._downstream
        if source is None:
            return None
        # Also ends while waiting: a launcher that is gone sends nothing more.
        readable, _, _ = select.select([source, self._control], [], [])
        message = b"" if self._control in readable else source.recv(_OUTPUT.size)
        if not message:
            self._hang()
        got, stamp_ns = _OUTPUT.unpack(message)
        if got != microbatch:
            raise RuntimeError(f"{instruction} awaits microbatch {microbatch} but {got} arrived")
        return int(stamp_ns)

    def _pass_on(self, instruction: str, microbatch: int, stamp_ns: int) -> None:
        target = self._downstream if instruction == "forward" else self._upstream
        if target is None:
            return
        try:
            target.send(_OUTPUT.pack(microbatch, stamp_ns))
        except OSError:
            self._hang()

    def _hang(self) -> None:
        """Wait for the launcher: what a rank does in a collective whose peer is gone."""
        while True:
            self._heard()

    def _heard(self) -> bytes:
        message = self._control.recv(MESSAGE_BYTES)
        if not message:
            raise _Stopped
        return message

    def _sleep_until(self, stamp_ns: int) -> None:
        while (left := stamp_ns - time.monotonic_ns()) > 0:
            if select.select([self._control], [], [], left / 1e9)[0]:
                self._hang()

    def _noise(self, iteration: int, position: int) -> float:
        """A lognormal factor of mean 1 and relative standard deviation `noise`, from the seed."""
        if not self._setup.noise:
            return 1.0
        setup = self._setup
        generator = random.Random(f"{setup.seed} {setup.rank} {iteration} {position}")
        sigma = math.sqrt(math.log1p(setup.noise**2))
        return generator.lognormvariate(-sigma * sigma / 2, sigma)

    def _configure_hooks(self, uuid: str) -> None:
        setup = self._setup
        perseus_hooks.configure(
            job=setup.job,
            rank=setup.rank,
            stage=setup.rank,
            stages=setup.stages,
            replica=0,
            replicas=1,
            schedule="1f1b",
            gpus=[uuid],
            runtime_dir=setup.runtime_dir,
            time_source="emulated",
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="perseusd.emulation.worker", allow_abbrev=False)
    for name in ("control", "upstream", "downstream"):
        parser.add_argument(f"--{name}", type=int, help="descriptor of an inherited socket")
    given = parser.parse_args(arguments)
    control = socket.socket(fileno=given.control)
    upstream, downstream = (
        None if fd is None else socket.socket(fileno=fd)
        for fd in (given.upstream, given.downstream)
    )
    try:
        setup = Setup.from_json(control.recv(MESSAGE_BYTES))
        Worker(setup, control, upstream, downstream).run()
    except (_Stopped, ConnectionError):
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
