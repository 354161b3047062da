"""torch.distributed.pipelining: one call has every computation of a schedule reported.

    from perseus_hooks.adapters import torch_pipelining

    torch_pipelining.instrument(schedule)

Every schedule of torch runs its computations through three methods of its stages, after it has
waited for what they need. The loss, which the schedule itself computes on the last stage, belongs
to that stage's forward. What runs before the first iteration to find shapes, and evaluation, is
no training: it is not reported, or as `other`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from perseus_hooks.adapters.attachment import Attachment, tell
from perseus_hooks.calls import stage_end, stage_start

_PREPARATIONS = ("_initialize_stage", "_initialize_stages")
_LOSS = "_maybe_compute_loss"


def instrument(schedule: Any, *, data_parallel: Any = None) -> Attachment:
    """Report what this schedule object runs, from its next `step` on.

    data_parallel: the process group of the ranks that hold the same stage of other replicas. It
    need not be given where the pipeline is the whole job, or where `configure` or PERSEUS_REPLICA
    and PERSEUS_REPLICAS say it; with tensor parallelism or FSDP beside it, the group of replicas.

    Raises TypeError where the object is none of torch's pipeline schedules.
    """
    stages = _stages(schedule)
    watched = _Watched(schedule)
    attachment = Attachment()
    attachment.surround(schedule, "step", watched.step)
    for name, around in ((_LOSS, watched.loss), *((n, watched.preparation) for n in _PREPARATIONS)):
        if hasattr(schedule, name):
            attachment.surround(schedule, name, around)
    for chunk, stage in enumerate(stages):
        reporter = _Chunk(watched, stage, chunk)
        attachment.surround(stage, "forward_one_chunk", reporter.forward)
        attachment.surround(stage, "backward_one_chunk", reporter.backward)
        attachment.surround(stage, "backward_weight_one_chunk", reporter.weight_gradient)
    tell(functools.partial(_place, schedule, stages, data_parallel))
    return attachment


def _stages(schedule: Any) -> list[Any]:
    """The stages of this rank in the model's order, which numbers their chunks."""
    found = getattr(schedule, "_stages", None) or [getattr(schedule, "_stage", None)]
    if not all(hasattr(stage, "forward_one_chunk") for stage in found):
        raise TypeError(
            f"instrument: {type(schedule).__name__} is no schedule of torch.distributed.pipelining:"
            " pass the object whose step() runs the pipeline"
        )
    return sorted(found, key=lambda stage: int(stage.stage_index))


def _place(schedule: Any, stages: list[Any], data_parallel: Any) -> dict[str, Any]:
    """Where this rank stands: its first stage is its place, and its group is the pipeline."""
    import torch.distributed as dist

    ranks = int(stages[0].group_size)
    place = int(stages[0].stage_index)
    replica, replicas = None, None
    if data_parallel is not None:
        replica, replicas = dist.get_rank(data_parallel), dist.get_world_size(data_parallel)
    elif dist.get_world_size() == ranks:
        replica, replicas = 0, 1
    device = stages[0].device
    return {
        "rank": dist.get_rank(),
        "world_size": dist.get_world_size(),
        "device": device.index if device.type == "cuda" else None,
        "stage": place if place < ranks else None,
        "stages": ranks,
        "replica": replica,
        "replicas": replicas,
        "schedule": type(schedule).__name__,
    }


class _Watched:
    """One schedule: its iterations, and the span of the last stage's forward that awaits its loss.

    iteration: −1 before the first.
    """

    def __init__(self, schedule: Any) -> None:
        self.iteration = -1
        self.preparing = False
        self.before_loss: _Computation | None = None
        self._schedule = schedule
        self._has_loss = getattr(schedule, "_loss_fn", None) is not None and hasattr(
            schedule, _LOSS
        )

    @property
    def trains(self) -> bool:
        return bool(self._schedule._has_backward)

    def loss_follows(self, stage: Any) -> bool:
        """Whether the schedule computes a loss after this stage's forwards."""
        return bool(self._has_loss and self.trains and stage.is_last)

    def step(self, *args: Any, **kwargs: Any) -> None:
        if self.before_loss is not None:  # that iteration was broken off
            self.before_loss.end()
            self.before_loss = None
        if self.trains:
            self.iteration += 1

    @contextlib.contextmanager
    def preparation(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """What torch runs before the first iteration, to find shapes, is no training."""
        self.preparing = True
        try:
            yield
        finally:
            self.preparing = False

    def loss(self, *args: Any, **kwargs: Any) -> _Computation | None:
        """What is still open of the forward whose loss this is."""
        computation, self.before_loss = self.before_loss, None
        return computation


class _Chunk:
    """One stage of this rank."""

    def __init__(self, watched: _Watched, stage: Any, chunk: int) -> None:
        self._watched = watched
        self._stage = stage
        self._chunk = chunk

    def forward(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> _Computation | None:
        watched = self._watched
        computation = self._computation("forward", fwd_chunk_id)
        if computation is not None and watched.loss_follows(self._stage):
            computation.stays_open = True
            watched.before_loss = computation
        return computation

    def backward(
        self,
        bwd_chunk_id: int,
        loss: Any = None,
        full_backward: bool = True,
        *args: Any,
        **kwargs: Any,
    ) -> _Computation | None:
        if not self._watched.trains:
            return None  # torch returns at once
        return self._computation("backward" if full_backward else "input_gradient", bwd_chunk_id)

    def weight_gradient(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> _Computation | None:
        if not self._watched.trains:
            return None
        return self._computation("weight_gradient", bwd_chunk_id)

    def _computation(self, instruction: str, microbatch: int) -> _Computation | None:
        watched = self._watched
        if watched.preparing:
            return None
        if not watched.trains:
            return _Computation("other", 0, 0, None)
        return _Computation(instruction, microbatch, self._chunk, watched.iteration)


class _Computation:
    """A span. stays_open: its first exit is not its end; the loss comes yet."""

    def __init__(
        self, instruction: str, microbatch: int, chunk: int, iteration: int | None
    ) -> None:
        self._instruction = instruction
        self._microbatch = microbatch
        self._chunk = chunk
        self._iteration = iteration
        self._token: int | None = None
        self.stays_open = False

    def __enter__(self) -> None:
        if self._token is None:
            self._token = stage_start(
                self._instruction,
                microbatch=self._microbatch,
                chunk=self._chunk,
                iteration=self._iteration,
            )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.stays_open:
            self.stays_open = False
        else:
            self.end()

    def end(self) -> None:
        stage_end(self._token)
