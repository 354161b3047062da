"""One rank of real torch pipelines on the CPU: every schedule, with the hooks and without.

    python pipeline_ranks.py RANK WORLD_SIZE FOLDER

Writes one JSON object: per schedule what was recorded, what torch executed, and the losses.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from perseus_hooks.adapters import torch_pipelining
from perseus_hooks.testing import Recording, record
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import get_schedule_class

RANKS = 2
MICROBATCHES = 4
WIDTH = 16
ITERATIONS = 3
CHUNKS = {
    "1F1B": 1,
    "GPipe": 1,
    "Interleaved1F1B": 2,
    "LoopedBFS": 2,
    "InterleavedZeroBubble": 2,
    "ZBVZeroBubble": 2,
    "DualPipeV": 2,
}
V_SHAPED = ("ZBVZeroBubble", "DualPipeV")
NAMES = {
    "FORWARD": "forward",
    "FULL_BACKWARD": "backward",
    "BACKWARD_INPUT": "input_gradient",
    "BACKWARD_WEIGHT": "weight_gradient",
}


def part(index: int) -> torch.nn.Module:
    """One stage of the model, the same wherever it is made."""
    torch.manual_seed(index)
    return torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Tanh())


def indices(name: str, rank: int) -> list[int]:
    """The virtual stages of a rank."""
    if CHUNKS[name] == 1:
        return [rank]
    if name in V_SHAPED:
        return [rank, 2 * RANKS - 1 - rank]
    return [rank, rank + RANKS]


def make(name: str, rank: int) -> tuple[Any, list[torch.nn.Module]]:
    """A schedule, and its modules."""
    count = RANKS * CHUNKS[name]
    modules = [part(index) for index in indices(name, rank)]
    stages = [
        PipelineStage(module, index, count, torch.device("cpu"))
        for module, index in zip(modules, indices(name, rank), strict=True)
    ]
    loss = torch.nn.MSELoss()
    held = stages if CHUNKS[name] > 1 else stages[0]
    return get_schedule_class(name)(held, MICROBATCHES, loss_fn=loss), modules


def train(name: str, rank: int, schedule: Any, modules: list[torch.nn.Module]) -> list[str]:
    """The losses, bit by bit; an evaluation after the first iteration."""
    torch.manual_seed(7)
    optimizer = torch.optim.SGD([p for m in modules for p in m.parameters()], lr=0.1)
    told: list[str] = []
    for iteration in range(ITERATIONS):
        batch = torch.randn(4 * MICROBATCHES, WIDTH)
        target = torch.randn(4 * MICROBATCHES, WIDTH)
        first = (batch,) if 0 in indices(name, rank) else ()
        holds_last = RANKS * CHUNKS[name] - 1 in indices(name, rank)
        losses: list[torch.Tensor] = []
        optimizer.zero_grad()
        schedule.step(*first, target=target if holds_last else None, losses=losses)
        optimizer.step()
        told += [loss.detach().numpy().tobytes().hex() for loss in losses]
        if iteration == 0 and name not in V_SHAPED:  # torch cannot evaluate those
            schedule.eval(*first, target=target if holds_last else None, losses=[])
    told += [p.detach().numpy().tobytes().hex() for m in modules for p in m.parameters()]
    return told


def executed(schedule: Any, rank: int) -> list[list[Any]] | None:
    """What torch's own program of this rank computes, in order; None where it has none."""
    program = getattr(schedule, "pipeline_order_with_comms", None)
    if program is None:
        return None
    place = {stage.stage_index: chunk for chunk, stage in enumerate(schedule._stages)}
    actions = [part for action in program[rank] for part in (action.sub_actions or [action])]
    return [
        [NAMES[action.computation_type.name], action.microbatch_index, place[action.stage_index]]
        for action in actions
        if action.computation_type.name in NAMES
    ]


def told(recording: Recording) -> dict[str, Any]:
    hello = recording.hello
    return {
        "spans": [[s.instruction, s.microbatch, s.chunk, s.iteration] for s in recording.spans],
        "durations_ns": [span.duration_ns for span in recording.spans],
        "open": len(recording.open),
        "place": [hello.stage, hello.stages, hello.replica, hello.replicas, hello.schedule],
    }


def left_behind(schedule: Any) -> list[str]:
    """Functions that are still replaced on the objects."""
    owners = [schedule, *(getattr(schedule, "_stages", None) or [schedule._stage])]
    return [name for owner in owners for name, value in vars(owner).items() if is_ours(value)]


def is_ours(value: Any) -> bool:
    return getattr(value, "__module__", "").startswith("perseus") or hasattr(value, "__wrapped__")


def run(name: str, rank: int) -> dict[str, Any]:
    without = train(name, rank, *make(name, rank))
    schedule, modules = make(name, rank)
    with record() as recording, torch_pipelining.instrument(schedule):
        hooked = train(name, rank, schedule, modules)
    return {
        "same": without == hooked,
        "values": len(hooked),
        "left_behind": left_behind(schedule),
        "executed": executed(schedule, rank),
        **told(recording),
    }


def main() -> None:
    rank, folder = int(sys.argv[1]), Path(sys.argv[3])
    warnings.simplefilter("ignore")  # torch's own, about features that come
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=RANKS)
    told = {name: run(name, rank) for name in CHUNKS}
    (folder / f"{rank}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
