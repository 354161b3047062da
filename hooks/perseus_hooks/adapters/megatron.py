"""Megatron-Core: a span around every microbatch's forward and backward, in each of its schedules.

All schedules of `megatron.core.pipeline_parallel.schedules` compute through that module's
`forward_step` and `backward_step`; what they receive, send and reduce lies outside. An iteration is
one call of a schedule that trains; one with `forward_only` is evaluation, and is `other`.

`forward_step` is told its model chunk and microbatch, `backward_step` is told neither. Which one it
works on follows from how the schedules choose: an iteration's k-th backward is of the chunk that
mirrors the k-th forward's, and the backwards of a chunk come in the order of its forwards.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections import deque
from collections.abc import Iterator
from typing import Any, ContextManager

from perseus_hooks.adapters.attachment import Attachment, attached, tell
from perseus_hooks.calls import stage

SCHEDULES = {  # Megatron's function: the name that perseusd has for its order
    "forward_backward_no_pipelining": None,
    "forward_backward_pipelining_without_interleaving": "1f1b",
    "forward_backward_pipelining_with_interleaving": "interleaved-1f1b",
}


def instrument(schedules: Any = None) -> Attachment:
    """Report this process's training from now on; `remove()` of what is returned ends that.

    schedules: the module to put the calls into; Megatron-Core's own where it is left out. Call this
    before `get_forward_backward_func()`, whose result is one of the functions that are replaced.
    Never raises: where Megatron is not as expected, that is logged and nothing is reported.
    """
    return attached(functools.partial(_attach, schedules))


def _attach(schedules: Any, attachment: Attachment) -> None:
    if schedules is None:
        schedules = importlib.import_module("megatron.core.pipeline_parallel.schedules")
    reporter = _Reporter()
    attachment.surround(schedules, "forward_step", reporter.forward)
    attachment.surround(schedules, "backward_step", reporter.backward)
    for name, schedule in SCHEDULES.items():
        attachment.surround(schedules, name, functools.partial(reporter.schedule, schedule))


class _Reporter:
    """Counts iterations, and knows the one that runs."""

    def __init__(self) -> None:
        self._iterations = 0
        self._told = False
        self._inside = False  # a schedule, for training or for evaluation
        self._current: _Iteration | None = None

    def schedule(self, name: str | None, *args: Any, **kwargs: Any) -> ContextManager[Any]:
        if kwargs.get("forward_only"):
            return self._evaluation()
        return self._training(name, **kwargs)

    def forward(
        self, forward_step_func: Any, data_iterator: Any, model: Any, *args: Any, **kwargs: Any
    ) -> ContextManager[Any] | None:
        if not self._inside:
            raise RuntimeError("call instrument() before get_forward_backward_func()")
        if self._current is None:
            return None
        return self._current.forward(model, kwargs.get("current_microbatch"))

    def backward(self, *args: Any, **kwargs: Any) -> ContextManager[Any] | None:
        return None if self._current is None else self._current.backward()

    @contextlib.contextmanager
    def _training(
        self, schedule: str | None, model: Any, pg_collection: Any = None, **kwargs: Any
    ) -> Iterator[None]:
        self._tell(schedule, pg_collection)
        chunks = list(model) if isinstance(model, list) else [model]
        self._inside, self._current = True, _Iteration(self._iterations, chunks)
        self._iterations += 1
        yield
        iteration, self._current, self._inside = self._current, None, False
        if not iteration.started:
            raise RuntimeError(
                "no forward_step ran: with overlap_moe_expert_parallel_comm forward and backward "
                "are one computation, which is not reported"
            )

    @contextlib.contextmanager
    def _evaluation(self) -> Iterator[None]:
        self._inside = True
        with stage("other"):
            yield
        self._inside = False

    def _tell(self, schedule: str | None, groups: Any) -> None:
        """Once, at the first iteration: the process groups exist by then."""
        if not self._told:
            self._told = True
            tell(lambda: {"schedule": schedule, **_place(groups)})


class _Iteration:
    """What has run of one iteration on this rank. models: its chunks, in their order."""

    def __init__(self, number: int, models: list[Any]) -> None:
        self._number = number
        self._models = models
        self._order: list[int] = []  # the chunks of the forwards so far
        self._pending: list[deque[int]] = [deque() for _ in models]  # microbatches, by chunk
        self._backwards = 0

    @property
    def started(self) -> bool:
        return bool(self._order)

    def forward(self, model: Any, microbatch: int | None) -> ContextManager[Any]:
        chunk = next(i for i, own in enumerate(self._models) if own is model)
        if microbatch is None:
            microbatch = self._order.count(chunk)
        self._order.append(chunk)
        self._pending[chunk].append(microbatch)
        return stage("forward", microbatch=microbatch, chunk=chunk, iteration=self._number)

    def backward(self) -> ContextManager[Any]:
        chunk = len(self._models) - 1 - self._order[self._backwards]
        self._backwards += 1
        microbatch = self._pending[chunk].popleft()
        return stage("backward", microbatch=microbatch, chunk=chunk, iteration=self._number)


def _place(groups: Any) -> dict[str, int]:
    """Where this rank is, by the process groups given to the schedule, or else Megatron's globals.

    Ranks of one pipeline rank and one data-parallel rank share a stage: the tensor-parallel and
    context-parallel peers, which work on the same microbatch at the same time.
    """
    world = importlib.import_module("torch.distributed")
    state = importlib.import_module("megatron.core.parallel_state")
    pipeline = getattr(groups, "pp", None) or state.get_pipeline_model_parallel_group()
    data = getattr(groups, "dp", None) or state.get_data_parallel_group()
    return {
        "rank": world.get_rank(),
        "world_size": world.get_world_size(),
        "stage": pipeline.rank(),
        "stages": pipeline.size(),
        "replica": data.rank(),
        "replicas": data.size(),
    }
