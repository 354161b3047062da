"""One rank of torch pipelines that a real daemon watches; what it says of them is written down.

    python pipeline_watched.py RANK WORLD_SIZE FOLDER SCHEDULE,… SLOW_RANK WANTED

Two ranks are one pipeline; a world of four has two replicas of it, whose gradients are averaged at
an iteration's end. Computations take their time asleep, as the host of a GPU does, and SLOW_RANK's
take 1.5 times as long. Trains until the daemon's status of the job has what is WANTED
(`critical_path` or `stragglers`), and writes it for each schedule.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import perseus_hooks
import torch
import torch.distributed as dist
import zmq
from perseus_hooks.adapters import torch_pipelining
from pipeline_ranks import CHUNKS, MICROBATCHES, RANKS, WIDTH, indices
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import get_schedule_class

FORWARD_S = 0.02
SLOWER = 1.5
FIRST_LOOK = 8  # iterations
MOST_ITERATIONS = 60


class Asleep(torch.autograd.Function):
    """The identity, which takes a while forward and twice as long backward."""

    @staticmethod
    def forward(context: Any, values: torch.Tensor, seconds: float) -> torch.Tensor:
        context.seconds = seconds
        time.sleep(seconds)
        return values.clone()  # torch detaches what a stage puts out in place

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        time.sleep(2 * context.seconds)
        return gradient, None


class Part(torch.nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(WIDTH, WIDTH)
        self.seconds = seconds

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = Asleep.apply(self.linear(values), self.seconds)
        return result


class Groups:
    """Rank r is stage r % 2 of replica r // 2."""

    def __init__(self, rank: int, world: int) -> None:
        replicas = range(world // RANKS)
        pipelines = [dist.new_group([r * RANKS + s for s in range(RANKS)]) for r in replicas]
        copies = [dist.new_group([r * RANKS + s for r in replicas]) for s in range(RANKS)]
        self.place = rank % RANKS
        self.pipeline = pipelines[rank // RANKS]
        self.copies = copies[self.place]


def make(name: str, groups: Groups, slow: bool) -> tuple[Any, list[torch.nn.Module]]:
    seconds = FORWARD_S / CHUNKS[name] * (SLOWER if slow else 1.0)
    own = indices(name, groups.place)
    parts: list[torch.nn.Module] = [Part(seconds) for _ in own]
    stages = [
        PipelineStage(part, index, RANKS * CHUNKS[name], torch.device("cpu"), group=groups.pipeline)
        for part, index in zip(parts, own, strict=True)
    ]
    held = stages if CHUNKS[name] > 1 else stages[0]
    return get_schedule_class(name)(held, MICROBATCHES, loss_fn=torch.nn.MSELoss()), parts


def iterate(name: str, groups: Groups, schedule: Any, parts: list[torch.nn.Module]) -> None:
    own = indices(name, groups.place)
    batch = (torch.randn(MICROBATCHES, WIDTH),) if 0 in own else ()
    last = RANKS * CHUNKS[name] - 1 in own
    schedule.step(*batch, target=torch.randn(MICROBATCHES, WIDTH) if last else None, losses=[])
    for part in parts:
        for parameter in part.parameters():
            dist.all_reduce(parameter.grad, group=groups.copies)
            parameter.grad = None


def status(job: str) -> list[dict[str, Any]]:
    """Of each replica of a job."""
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.linger = 0
        socket.connect(f"ipc://{os.environ['PERSEUS_RUNTIME_DIR']}/status.sock")
        socket.send(b'{"command": "status"}')
        assert socket.poll(20_000), "the daemon does not answer"
        jobs = json.loads(socket.recv())["jobs"]
    return [one for one in jobs if job in one["id"]]


def watched(name: str, groups: Groups, slow: bool, wanted: str) -> list[dict[str, Any]]:
    """Train until the daemon says it, or for MOST_ITERATIONS; what it said."""
    perseus_hooks.configure(job=f"job-{name}", rank=dist.get_rank())
    schedule, parts = make(name, groups, slow)
    said: list[dict[str, Any]] = []
    done = torch.zeros(1)
    with torch_pipelining.instrument(schedule, data_parallel=groups.copies):
        for iteration in range(MOST_ITERATIONS):
            iterate(name, groups, schedule, parts)
            if dist.get_rank() == 0 and iteration >= FIRST_LOOK:
                said = status(f"job-{name}")
                done[0] = float(bool(said) and all(one[wanted] for one in said))
            dist.broadcast(done, 0)
            if done[0]:
                break
    return said


def main() -> None:
    rank, world, folder, names, slow_rank, wanted = sys.argv[1:]
    os.environ["PERSEUS_GPUS"] = rank
    warnings.simplefilter("ignore")  # torch's own, about features that come
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=int(rank), world_size=int(world))
    groups = Groups(int(rank), int(world))
    slow = rank == slow_rank
    told = {name: watched(name, groups, slow, wanted) for name in names.split(",")}
    (Path(folder) / f"{rank}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
