"""What hooks add to an iteration of a real torch pipeline, beside two peers, in one run.

    pip install . ./hooks '.[bench]' torch==2.13.0
    python benchmarks/training.py [--rounds 24] [--iterations 4] [--work asleep|cpu]
                                  [--forward 0.01] [--json]

Two processes run torch's 1F1B on the CPU (gloo). Each round runs every way once, in random order,
for some iterations each, so all see the same machine; a way's ratio is its mean iteration time over
that of no hooks in the same round, and its interval is bootstrapped over the rounds. Ways:

    perseusd    the adapter for torch pipelines, a real daemon on simulated GPUs, observing
    absent      the same where no daemon runs
    zeus        Zeus's frequency controller: at every instruction a put into a queue to another
                process (which only reads it here; its synchronise needs a GPU and is left out)
    resiliency  NVIDIA resiliency extension's section timing around every instruction (no CUPTI)

With --work asleep computations are sleeps, as the host of a GPU waits, a forward of --forward
seconds and a backward of twice that; with cpu they compute.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import perseus_hooks
import torch
import torch.distributed as dist
from perseus_hooks.adapters import torch_pipelining
from perseus_hooks.adapters.attachment import Attachment
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

RANKS, MICROBATCHES, WIDTH = 2, 8, 64
CPU_ROUNDS = 60
WAYS = ("perseusd", "absent", "zeus", "resiliency")
METHODS = ("forward_one_chunk", "backward_one_chunk")

Way = Callable[[Any], contextlib.AbstractContextManager[Any]]


class Work(torch.autograd.Function):
    """The identity, which takes a while forward and twice as long backward."""

    @staticmethod
    def forward(context: Any, values: torch.Tensor, asleep_s: float) -> torch.Tensor:
        context.asleep_s = asleep_s
        take_time(1, asleep_s)
        return values.clone()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        take_time(2, context.asleep_s)
        return gradient, None


def take_time(times: int, asleep_s: float) -> None:
    if asleep_s:
        time.sleep(times * asleep_s)
        return
    block = torch.eye(384)
    for _ in range(times * CPU_ROUNDS // 10):
        block = block @ block


class Part(torch.nn.Module):
    def __init__(self, asleep_s: float) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(WIDTH, WIDTH)
        self.asleep_s = asleep_s

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = Work.apply(self.linear(values), self.asleep_s)
        return result


@contextlib.contextmanager
def ours(schedule: Any, runtime_dir: str) -> Iterator[None]:
    perseus_hooks.configure(
        job="benchmark", rank=dist.get_rank(), gpus=[dist.get_rank()], runtime_dir=runtime_dir
    )
    with torch_pipelining.instrument(schedule):
        yield
    perseus_hooks.close()


def zeus() -> Way:
    from zeus.optimizer.pipeline_frequency.frequency_controller import FrequencyController

    class Reader(FrequencyController):
        def _controller_process(self, device_id: int) -> None:
            while self._q.get() is not None:
                pass

    controller = Reader()
    clocks = (1410, 1200)  # a change at every instruction, as its plans have

    def around(*_: Any, **__: Any) -> None:
        controller.set_frequency(clocks[0])

    return surrounded(around)


def resiliency() -> Way:
    from nvidia_resiliency_ext.straggler import Detector

    Detector.initialized, Detector.profiling_interval, Detector.custom_sections = True, 1, {}
    return surrounded(lambda *_, **__: Detector.detection_section("part", profile_cuda=False))


def surrounded(around: Callable[..., Any]) -> Way:
    def way(schedule: Any) -> Attachment:
        attachment = Attachment()
        for method in METHODS:
            attachment.surround(schedule._stage, method, around)
        return attachment

    return way


def ways(folder: str) -> dict[str, Way]:
    """Those whose packages are here."""
    found: dict[str, Way] = {"none": lambda _: contextlib.nullcontext()}
    found["perseusd"] = lambda schedule: ours(schedule, folder)
    found["absent"] = lambda schedule: ours(schedule, folder + "/none")
    for name, make in (("zeus", zeus), ("resiliency", resiliency)):
        try:
            found[name] = make()
        except ImportError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    return found


def iterate(schedule: Any, rank: int, count: int) -> float:
    """Seconds an iteration, as rank 0 sees it; both wait for each other at the end."""
    begun = time.perf_counter()
    for _ in range(count):
        if rank == 0:
            schedule.step(torch.ones(MICROBATCHES, WIDTH))
        else:
            schedule.step(target=torch.zeros(MICROBATCHES, WIDTH), losses=[])
        dist.barrier()
    return (time.perf_counter() - begun) / count


def train(rank: int, arguments: argparse.Namespace) -> None:
    """One rank; rank 0 prints its times."""
    warnings.simplefilter("ignore")  # torch's own, about features that come
    torch.set_num_threads(1)
    meeting = f"file://{arguments.folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=RANKS)
    asleep_s = arguments.forward if arguments.work == "asleep" else 0.0
    stage = PipelineStage(Part(asleep_s), rank, RANKS, torch.device("cpu"))
    schedule = Schedule1F1B(stage, MICROBATCHES, loss_fn=torch.nn.MSELoss())
    found = ways(arguments.folder)
    iterate(schedule, rank, 3)
    draw = random.Random(1)
    times: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(arguments.rounds):
        for name in draw.sample(sorted(found), len(found)):
            with found[name](schedule):
                iterate(schedule, rank, 1)
                times[name].append(iterate(schedule, rank, arguments.iterations))
    if rank == 0:
        print(json.dumps(times))
    sys.stdout.flush()
    dist.destroy_process_group()
    for child in multiprocessing.active_children():  # Zeus's, which would be waited for
        child.kill()


def summary(times: dict[str, list[float]]) -> dict[str, Any]:
    """Ratios to no hooks, less 1, in per cent, with their 95 % intervals."""
    random_ = np.random.default_rng(0)
    bare = np.array(times["none"])
    rows: dict[str, Any] = {"iteration_time_s": float(bare.mean())}
    for name in (way for way in WAYS if way in times):
        added = 100 * (np.array(times[name]) / bare - 1)
        draws = random_.choice(added, (4000, len(added))).mean(axis=1)
        low, high = np.percentile(draws, [2.5, 97.5])
        rows[name] = {
            "added_percent": float(added.mean()),
            "low": float(low),
            "high": float(high),
            "median": float(np.median(added)),
        }
    return rows


@contextlib.contextmanager
def daemon(folder: str) -> Iterator[None]:
    run = [sys.executable, "-m", "perseusd", "run", "--simulate", str(RANKS), "--observe"]
    with (Path(folder) / "log").open("wb") as log:
        process = subprocess.Popen([*run, "--runtime-dir", folder], stdout=log, stderr=log)
    try:
        while not (Path(folder) / "hooks.sock").exists():
            if process.poll() is not None:
                sys.exit((Path(folder) / "log").read_text())
            time.sleep(0.1)
        time.sleep(30)  # the planner process compiles its kernels on a fresh machine
        yield
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--forward", type=float, default=0.01, help="s")
    parser.add_argument("--work", choices=("asleep", "cpu"), default="asleep")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank is not None:
        train(arguments.rank, arguments)
        return
    with tempfile.TemporaryDirectory(prefix="perseus-") as folder, daemon(folder):
        command = [sys.executable, __file__, *sys.argv[1:], "--folder", folder, "--rank"]
        other = subprocess.Popen([*command, "1"])
        told = subprocess.run([*command, "0"], stdout=subprocess.PIPE, check=True, text=True)
        other.wait()
    rows = summary(json.loads(told.stdout))
    if arguments.json:
        print(json.dumps({"schema_version": 1, "work": arguments.work, **rows}, indent=1))
        return
    print(f"iterations of {rows.pop('iteration_time_s'):.4f} s; added by each way:")
    for name, row in rows.items():
        print(
            f"{name:12}{row['added_percent']:+7.2f} %  [{row['low']:+.2f}, {row['high']:+.2f}]"
            f"  median {row['median']:+.2f} %"
        )


if __name__ == "__main__":
    main()
