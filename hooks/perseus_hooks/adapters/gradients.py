"""Where a backward pass has computed its gradients, and before it waits for other replicas' ones.

DistributedDataParallel sends gradients while backward still computes, and waits for the last of
them in a callback that the autograd engine runs after the pass (torch's reducer.cpp,
`finalize_backward`). The engine runs such callbacks in the order in which they were queued, and
DDP queues its own once the last gradient is there: what is queued before that runs before the wait.
So a replica's span has its own computing alone, and a slow replica is not hidden by those that
wait for it. What is queued runs with the stream current on which backward was called.

FSDP gathers and reduces between layers instead; there no end of a span leaves the waiting out.
"""

from __future__ import annotations

import contextlib
import functools
from types import TracebackType
from typing import Any, Callable, TypeVar, cast

from perseus_hooks import calls
from perseus_hooks.log import Once

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Computing:
    """The one computation of this process that is open, if any. Starting one ends the one before.

    `end` may be called in any thread, and twice.
    """

    def __init__(self) -> None:
        self._open: list[tuple[int, str]] = []  # one or none: a list's pop is atomic

    @property
    def instruction(self) -> str | None:
        """What is open."""
        return self._open[-1][1] if self._open else None

    def start(self, instruction: str, *, microbatch: int, iteration: int | None) -> None:
        self.end()
        token = calls.stage_start(instruction, microbatch=microbatch, iteration=iteration)
        self._open.append((token, instruction))

    def end(self) -> None:
        with contextlib.suppress(IndexError):
            calls.stage_end(self._open.pop()[0])

    def end_with_backward_of(self, loss: Any) -> None:
        """End once the gradients of this tensor are computed, before they are waited for."""
        loss.register_hook(lambda gradient: self.end_with_this_backward())

    def end_with_gradient_of(self, parameter: Any) -> Any:
        """As above, where the loss is out of sight: in each backward that reaches this parameter.

        Take one whose gradient comes late, as a model's first. Returns torch's handle, to remove.
        """
        return parameter.register_post_accumulate_grad_hook(lambda _: self.end_with_this_backward())

    def end_with_this_backward(self) -> None:
        """Call it inside of a backward pass."""
        try:
            _queue(self.end)
        except Exception as error:  # noqa: BLE001  a hook never raises
            say_once(f"the waiting for other replicas counts as backward: {error!r}")


class backward:  # noqa: N801  reads as a call, as `stage` does
    """`with backward(loss, microbatch=3): loss.backward()`, for loops of one's own with DDP.

    Reports `backward` until this replica's gradients are computed, without the wait for others.
    Never raises, and changes no gradient.
    """

    def __init__(self, loss: Any, *, microbatch: int = 0, iteration: int | None = None) -> None:
        self._loss = loss
        self._microbatch = microbatch
        self._iteration = iteration
        self._computing = Computing()

    def __enter__(self) -> None:
        computing = self._computing
        computing.start("backward", microbatch=self._microbatch, iteration=self._iteration)
        try:
            computing.end_with_backward_of(self._loss)
        except Exception as error:  # noqa: BLE001  a hook never raises
            say_once(f"the waiting for other replicas counts as backward: {error!r}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._computing.end()


def place(data_parallel: bool, rank: int, ranks: int) -> dict[str, int | None]:
    """Where a rank stands if each is a replica, named as in `Found`; else that it is not known.

    Said, and not left out: an earlier training of this process may have been data-parallel.
    """
    if data_parallel:
        return {"stage": 0, "stages": 1, "replica": rank, "replicas": ranks}
    return {"stage": None, "stages": None, "replica": None, "replicas": None}


def quietly(method: _Function) -> _Function:
    """A callback's method that never raises: what goes wrong in it is logged once."""

    @functools.wraps(method)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            method(*args, **kwargs)
        except Exception as error:  # noqa: BLE001  a hook never raises
            say_once(
                f"perseusd does not hear of some of this training ({method.__name__}): {error!r}"
            )

    return cast(_Function, guarded)


_once = Once()


def say_once(message: str) -> None:
    _once.warn(message, "%s", message)


def _queue(call: Callable[[], None]) -> None:
    from torch.autograd import Variable

    # Not documented, and what torch's own DDP and FSDP use from Python.
    Variable._execution_engine.queue_callback(call)
