"""One rank of a Megatron-Core job on two CPUs; test_megatron.py starts two and reads what they saw.

Megatron is real and unchanged. It asks for CUDA tensors in three places of its pipelines, and there
is none here: `OnCpu` gives it CPU tensors instead. Each computation notes itself what it is, from
within the model, which is what the adapter's spans are held against.

Usage: python megatron_worker.py RANK WORLD_SIZE FOLDER
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import ModelParallelConfig, parallel_state
from megatron.core.enums import ModelType
from megatron.core.pipeline_parallel import get_forward_backward_func, schedules
from perseus_hooks.adapters import megatron
from perseus_hooks.testing import Recording, record
from torch.overrides import TorchFunctionMode

MICROBATCHES = 5
SEQUENCE, BATCH, WIDTH = 3, 2, 4
TRAIN, EVALUATE = "train", "evaluate"
PROGRAMME = (TRAIN, TRAIN, EVALUATE, TRAIN)
NAMES = ("forward_step", "backward_step", *megatron.SCHEDULES)

Truth = list[tuple[str, int, int]]  # instruction, microbatch, chunk


class OnCpu(TorchFunctionMode):
    """Whatever asks for the CUDA device gets the CPU."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("device") == "cuda":
            kwargs["device"] = "cpu"
        return function(*args, **kwargs)


class Noted(torch.autograd.Function):
    """The identity; its forward and its backward note that they ran."""

    @staticmethod
    def forward(ctx: Any, value: Any, truth: Truth, microbatch: int, chunk: int) -> Any:
        ctx.note = (truth, microbatch, chunk)
        truth.append(("forward", microbatch, chunk))
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        truth, microbatch, chunk = ctx.note
        truth.append(("backward", microbatch, chunk))
        return gradients[0], None, None, None


class Chunk(torch.nn.Module):
    """A chunk of a model as Megatron's schedules need one."""

    def __init__(self, config: ModelParallelConfig, chunk: int, truth: Truth) -> None:
        super().__init__()
        self.config, self.chunk, self.truth = config, chunk, truth
        self.model_type = ModelType.encoder_or_decoder
        self.layer = torch.nn.Linear(WIDTH, WIDTH)
        self.dropout = torch.nn.Dropout(0.1)  # random state that must not change either
        self.received: Any = None

    def set_input_tensor(self, tensors: Any) -> None:
        self.received = tensors[0] if isinstance(tensors, list) else tensors

    def forward(self, batch: Any, microbatch: int) -> Any:
        value = batch if self.received is None else self.received
        value = self.dropout(torch.tanh(self.layer(value)))
        return Noted.apply(value, self.truth, microbatch, self.chunk)


class Job:
    """A model from one seed, and its training and evaluation by Megatron's schedule."""

    def __init__(self, chunks: int) -> None:
        torch.manual_seed(7 + dist.get_rank())
        self.truth: Truth = []
        config = ModelParallelConfig(
            pipeline_model_parallel_size=parallel_state.get_pipeline_model_parallel_world_size(),
            virtual_pipeline_model_parallel_size=chunks if chunks > 1 else None,
            microbatch_group_size_per_vp_stage=2 if chunks > 1 else None,
            pipeline_dtype=torch.float32,
            batch_p2p_sync=False,  # it would synchronise CUDA
            deallocate_pipeline_outputs=True,
        )
        config.hidden_size = WIDTH
        config.hybrid_context_parallel = False
        config.fine_grained_activation_offloading = False
        self.models = [Chunk(config, chunk, self.truth) for chunk in range(chunks)]
        self.parameters = [p for model in self.models for p in model.parameters()]
        self.optimizer = torch.optim.SGD(self.parameters, lr=0.1)
        self.losses: list[Any] = []

    def run(self, kind: str, schedule: Any = None, step: Any = None) -> None:
        """One iteration, or one evaluation."""
        data = [self._batches() for _ in self.models]
        several = len(self.models) > 1
        with OnCpu():
            self.losses += (schedule or get_forward_backward_func())(
                forward_step_func=step or self.step,
                data_iterator=data if several else data[0],
                model=self.models if several else self.models[0],
                num_microbatches=MICROBATCHES if not several else 2 * (MICROBATCHES // 2),
                seq_length=SEQUENCE,
                micro_batch_size=BATCH,
                forward_only=kind == EVALUATE,
            )
        if kind == TRAIN:
            self.optimizer.step()
            self.optimizer.zero_grad()

    def step(self, data_iterator: Any, model: Chunk) -> Any:
        microbatch, batch = next(data_iterator)
        return model(batch, microbatch), _loss

    def result(self) -> list[Any]:
        """Everything that training leaves, bit by bit."""
        values = [*self.losses, *self.parameters, torch.get_rng_state()]
        return [value.detach().numpy().tobytes().hex() for value in values]

    def _batches(self) -> Iterator[tuple[int, Any]]:
        generator = torch.Generator().manual_seed(3)
        for microbatch in range(MICROBATCHES):
            yield microbatch, torch.randn(SEQUENCE, BATCH, WIDTH, generator=generator)


def _loss(output: Any) -> Any:
    loss = output.square().mean()
    return loss, loss.detach().clone()


def seen(recording: Recording) -> list[list[Any]]:
    return [[s.instruction, s.microbatch, s.chunk, s.stage, s.iteration] for s in recording.spans]


def place(recording: Recording) -> dict[str, Any]:
    names = ("rank", "world_size", "stage", "stages", "replica", "replicas", "schedule")
    return {name: getattr(recording.hello, name) for name in names}


@contextlib.contextmanager
def parallel(**sizes: Any) -> Iterator[None]:
    parallel_state.initialize_model_parallel(**sizes)
    yield
    parallel_state.destroy_model_parallel()


def training(chunks: int) -> dict[str, Any]:
    """The programme without the adapter, with it, and once more after its removal."""
    before = {name: getattr(schedules, name) for name in NAMES}
    plain, watched, after = Job(chunks), None, None
    for kind in PROGRAMME:
        plain.run(kind)
    plain_result = plain.result()
    with record() as recording:
        with megatron.instrument():
            watched = Job(chunks)
            ran = []
            for kind in PROGRAMME:
                watched.run(kind)
                ran.append([kind, list(watched.truth)])
                watched.truth.clear()
            watched_result = watched.result()
        spans, said = seen(recording), place(recording)
        after = Job(chunks)
        after.run(TRAIN)
    return {
        "ran": ran,
        "spans": spans,
        "open": len(recording.open),
        "place": said,
        "alike": plain_result == watched_result,
        "losses": len(plain.losses),
        "spans_after_removal": len(recording.spans) - len(spans),
        "restored": all(getattr(schedules, name) is before[name] for name in NAMES),
    }


def failing() -> dict[str, Any]:
    """The second microbatch raises; no pipeline, so that no other rank waits for it."""
    job = Job(1)

    def step(data_iterator: Any, model: Chunk) -> Any:
        microbatch, batch = next(data_iterator)
        if microbatch == 1:
            raise ArithmeticError("of the model")
        return model(batch, microbatch), _loss

    with record() as recording, megatron.instrument():
        try:
            job.run(TRAIN, step=step)
        except ArithmeticError as error:
            raised = str(error)
        job.run(TRAIN)
    return {"raised": raised, "spans": seen(recording), "open": len(recording.open)}


def placed() -> dict[str, Any]:
    with record() as recording, megatron.instrument():
        Job(1).run(TRAIN)
    return place(recording)


def nowhere(log: list[str]) -> dict[str, Any]:
    """Megatron does not tell the data-parallel group: the spans come all the same."""
    told = parallel_state.get_data_parallel_group

    def broken(**which: Any) -> Any:
        if not which:
            raise KeyError("of Megatron")
        return told(**which)

    parallel_state.get_data_parallel_group = broken
    try:
        with record() as recording, megatron.instrument():
            job = Job(1)
            job.run(TRAIN)
            job.run(TRAIN)
    finally:
        parallel_state.get_data_parallel_group = told
    return {"spans": len(recording.spans), "stage": recording.hello.stage, "log": drained(log)}


def late(log: list[str]) -> dict[str, Any]:
    """The schedule was fetched before `instrument`."""
    schedule = get_forward_backward_func()
    with record() as recording, megatron.instrument():
        job = Job(1)
        job.run(TRAIN, schedule)
        job.run(TRAIN, schedule)
    return {"spans": len(recording.spans), "losses": len(job.losses), "log": drained(log)}


def otherwise(log: list[str]) -> dict[str, Any]:
    """A module whose schedules compute without forward_step."""
    module = SimpleNamespace(**{name: lambda **_: "losses" for name in NAMES})
    with record() as recording, megatron.instrument(module):
        returned = [module.forward_backward_no_pipelining(model=[object()]) for _ in range(2)]
    return {"spans": len(recording.spans), "returned": returned, "log": drained(log)}


def drained(log: list[str]) -> list[str]:
    lines, log[:] = list(log), []
    return lines


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, entry: logging.LogRecord) -> None:
        self.lines.append(entry.getMessage())


def main() -> None:
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    torch.cuda.current_device = lambda: "cpu"  # where Megatron's receives put what arrives
    kept = Kept()
    logging.getLogger("perseus_hooks").addHandler(kept)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world)
    found: dict[str, Any] = {}
    with parallel(pipeline_model_parallel_size=2):
        found["1f1b"] = training(chunks=1)
    with parallel(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2):
        found["interleaved"] = training(chunks=2)
    with parallel():
        found["data"] = placed()
        found["alone"] = training(chunks=1)
        found["failing"] = failing()
        found["log"] = drained(kept.lines)
        found["nowhere"] = nowhere(kept.lines)
        found["late"] = late(kept.lines)
        found["otherwise"] = otherwise(kept.lines)
    with parallel(tensor_model_parallel_size=2):
        found["tensor"] = placed()
    with parallel(context_parallel_size=2):
        found["context"] = placed()
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
