"""One rank of a DeepSpeed pipeline on two CPUs; test_deepspeed.py starts two and reads their notes.

DeepSpeed is real and unchanged, with its own accelerator for the CPU. What the adapter's spans are
held against are the instructions of the engine's own schedule, and a module that notes in which
order it computed.

Usage: DS_ACCELERATOR=cpu python deepspeed_worker.py RANK WORLD_SIZE FOLDER
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.pipe import DualPipeVModule, LayerSpec, PipelineModule
from deepspeed.runtime.pipe import schedule
from perseus_hooks.adapters.deepspeed import instrument
from perseus_hooks.testing import Recording, record

MICROBATCHES = 5
BATCH, WIDTH = 2, 4
TRAIN, EVALUATE = "train", "evaluate"
PROGRAMME = (TRAIN, TRAIN, EVALUATE, TRAIN)
PASSES = {schedule.ForwardPass: "forward", schedule.BackwardPass: "backward"}
CONFIG = {
    "train_micro_batch_size_per_gpu": BATCH,
    "gradient_accumulation_steps": MICROBATCHES,
    "optimizer": {"type": "SGD", "params": {"lr": 0.1}},
    "steps_per_print": None,
}

RAN: list[str] = []  # passes of this rank's layers


class Layer(torch.nn.Module):
    """Notes its forwards and backwards, with Noted, in RAN."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(WIDTH, WIDTH)
        self.dropout = torch.nn.Dropout(0.1)  # random state that must not change either

    def forward(self, value: Any) -> Any:
        return Noted.apply(self.dropout(torch.tanh(self.linear(value))))


class Noted(torch.autograd.Function):
    """The identity; its forward and its backward note that they ran."""

    @staticmethod
    def forward(ctx: Any, value: Any) -> Any:
        RAN.append("forward")
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        RAN.append("backward")
        return gradients[0]


def engine_of(kind: type[PipelineModule], layers: int) -> Any:
    """An engine from one seed: a layer a stage."""
    torch.manual_seed(7)
    module = kind(
        layers=[LayerSpec(Layer) for _ in range(layers)],
        num_stages=2,
        loss_fn=torch.nn.functional.mse_loss,
        partition_method="uniform",
    )
    parameters = [p for p in module.parameters() if p.requires_grad]
    engine, *_ = deepspeed.initialize(model=module, model_parameters=parameters, config=CONFIG)
    return engine


def batches() -> Iterator[tuple[Any, Any]]:
    generator = torch.Generator().manual_seed(3)
    while True:
        yield tuple(torch.randn(2, BATCH, WIDTH, generator=generator))


def run(engine: Any, data: Iterator[Any]) -> list[Any]:
    """The programme; returns what training leaves, bit by bit."""
    left = []
    for kind in PROGRAMME:
        left.append(engine.train_batch(data) if kind == TRAIN else engine.eval_batch(data))
    left += [*engine.module.parameters(), torch.get_rng_state()]
    return [value.detach().numpy().tobytes().hex() for value in left]


def scheduled(engine: Any) -> list[list[Any]]:
    """The computations of the engine's own schedule: instruction, buffer and phase."""
    instructions = (cmd for step in engine._train_schedule() for cmd in step)
    return [
        [PASSES[type(cmd)], cmd.kwargs["buffer_id"], cmd.kwargs.get("phase", 0)]
        for cmd in instructions
        if type(cmd) in PASSES
    ]


def seen(recording: Recording) -> list[list[Any]]:
    return [[s.instruction, s.microbatch, s.chunk, s.iteration] for s in recording.spans]


def place(recording: Recording) -> dict[str, Any]:
    names = ("rank", "world_size", "stage", "stages", "replica", "replicas", "schedule")
    return {name: getattr(recording.hello, name) for name in names}


def training(kind: type[PipelineModule], layers: int) -> dict[str, Any]:
    """The programme without the adapter, with it, and an iteration more after its removal."""
    plain = run(engine_of(kind, layers), batches())
    engine = engine_of(kind, layers)
    before = dict(vars(engine))
    RAN.clear()
    with record() as recording:
        with instrument(engine):
            left = run(engine, batches())
        spans, ran = seen(recording), list(RAN)
        engine.train_batch(batches())
    names = ("_INSTRUCTION_MAP", "train_batch", "eval_batch")
    return {
        "spans": spans,
        "ran": ran,
        "scheduled": scheduled(engine),
        "open": len(recording.open),
        "place": place(recording),
        "alike": plain == left,
        "values": len(plain),
        "spans_after_removal": len(recording.spans) - len(spans),
        "restored": not set(names) & (set(vars(engine)) | set(before)),
    }


def failing(log: list[str]) -> dict[str, Any]:
    """DeepSpeed's grid tells nothing; then the model raises in the very first forward of rank 0."""
    engine = engine_of(PipelineModule, 2)
    raised = None
    grid, engine.grid = engine.grid, None
    with record() as recording, instrument(engine):
        engine.grid = grid
        engine.train_batch(batches())
        if engine.is_first_stage():  # rank 1 would wait for what never comes
            engine.module.register_forward_hook(_fail)
            try:
                engine.train_batch(batches())
            except ArithmeticError as error:
                raised = str(error)
    lines, log[:] = list(log), []
    return {"raised": raised, "spans": seen(recording), "open": len(recording.open), "log": lines}


def _fail(*_: Any) -> None:
    raise ArithmeticError("of the model")


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, entry: logging.LogRecord) -> None:
        self.lines.append(entry.getMessage())


def main() -> None:
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    kept = Kept()
    logging.getLogger("perseus_hooks").addHandler(kept)
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/store", rank=rank, world_size=world
    )
    # DeepSpeed would compile its all-reduce over shared memory: a minute, and a C++ compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo")
    found: dict[str, Any] = {}
    found["1f1b"] = training(PipelineModule, 2)
    found["dualpipev"] = training(DualPipeVModule, 4)
    found["log"] = list(kept.lines)
    found["failing"] = failing(kept.lines)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
