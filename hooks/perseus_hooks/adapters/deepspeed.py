"""DeepSpeed's pipeline engine: a span around every microbatch's forward and backward.

The engine executes a schedule's instructions by its `_INSTRUCTION_MAP`, in which the passes are
functions of their own: replacing the methods of the same names would reach nothing, so the map is
what is replaced. Receiving, sending, loading and reducing are instructions of their own, and lie
outside. An iteration is one `train_batch`; an `eval_batch` is evaluation, and is `other`.

A pass is told its buffer and, with DualPipeV, its phase, which is the chunk; a buffer keeps its
microbatch from the forward to the backward.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, ContextManager

from perseus_hooks.adapters.attachment import Attachment, attached, tell
from perseus_hooks.calls import stage

_SCHEDULES = {"TrainSchedule": "1f1b", "DualPipeVSchedule": "dualpipev"}


def instrument(engine: Any) -> Attachment:
    """Report this engine's training from now on; `remove()` of what is returned ends that.

    engine: the PipelineEngine that `deepspeed.initialize` returns for a PipelineModule. Never
    raises: where the engine is not as expected, that is logged and nothing is reported.
    """
    return attached(functools.partial(_attach, engine))


def _attach(engine: Any, attachment: Attachment) -> None:
    if not hasattr(engine, "_INSTRUCTION_MAP"):
        raise TypeError(f"{type(engine).__name__} has no pipeline: instrument a PipelineEngine")
    names = importlib.import_module("deepspeed.runtime.pipe.schedule")
    reporter = _Reporter()
    passes = SimpleNamespace(
        forward=engine._INSTRUCTION_MAP[names.ForwardPass],
        backward=engine._INSTRUCTION_MAP[names.BackwardPass],
    )
    attachment.surround(passes, "forward", reporter.forward)
    attachment.surround(passes, "backward", reporter.backward)
    reported = {names.ForwardPass: passes.forward, names.BackwardPass: passes.backward}
    attachment.replace(engine, "_INSTRUCTION_MAP", {**engine._INSTRUCTION_MAP, **reported})
    attachment.surround(engine, "train_batch", reporter.train_batch)
    attachment.surround(engine, "eval_batch", reporter.eval_batch)
    tell(functools.partial(_place, engine))


class _Reporter:
    """Counts iterations, and the microbatches of the one that runs."""

    def __init__(self) -> None:
        self._iterations = 0
        self._training = False
        self._forwards: Counter[int] = Counter()  # by chunk
        self._microbatch: dict[tuple[int, int], int] = {}  # by chunk and buffer

    @contextlib.contextmanager
    def train_batch(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        self._forwards.clear()
        self._microbatch.clear()
        self._training = True
        yield
        self._training = False
        self._iterations += 1

    def eval_batch(self, *args: Any, **kwargs: Any) -> ContextManager[Any]:
        return stage("other")

    def forward(self, engine: Any, buffer_id: int, phase: int = 0) -> ContextManager[Any] | None:
        if not self._training:
            return None
        self._microbatch[phase, buffer_id] = self._forwards[phase]
        self._forwards[phase] += 1
        return self._span("forward", phase, buffer_id)

    def backward(self, engine: Any, buffer_id: int, phase: int = 0) -> ContextManager[Any] | None:
        return self._span("backward", phase, buffer_id) if self._training else None

    def _span(self, instruction: str, chunk: int, buffer: int) -> ContextManager[Any]:
        microbatch = self._microbatch[chunk, buffer]
        return stage(instruction, microbatch=microbatch, chunk=chunk, iteration=self._iterations)


def _place(engine: Any) -> dict[str, Any]:
    """Where this rank is. Ranks of one stage and one replica are a tensor-slicing group."""
    grid = engine.grid
    return {
        "rank": grid.global_rank,
        "world_size": grid.world_size,
        "stage": engine.stage_id,
        "stages": engine.num_stages,
        "replica": grid.get_data_parallel_id(),
        "replicas": grid.data_parallel_size,
        "schedule": _schedule(engine),
    }


def _schedule(engine: Any) -> str | None:
    """The name of the engine's schedule, where that is one of DeepSpeed's own."""
    if not hasattr(engine, "_train_schedule"):
        return "1f1b"  # before 0.19 there was no other
    return _SCHEDULES.get(type(engine._train_schedule()).__name__)
