"""JAX: whole iterations and dispatched tasks, timed by when their results are ready.

A jitted call returns before it is computed, and inside it there is no host that could make two
calls. So what is told is what was dispatched: the whole iteration,

    train_step = perseus_hooks.adapters.jax.iterations(train_step)

or, where a pipeline's stages are dispatched one by one, each of their tasks:

    with task("forward", microbatch=m, iteration=i, after=x) as forward:
        y = forward.result(stage_forward(weights, x))

Nothing here waits for a device, starts a backend or changes a result; see `readiness`. For one
process that dispatches several stages there are `stage_clients`, and for a pipeline that is one
jitted function the optional `Marks`.
"""

from __future__ import annotations

import functools
import time
from types import TracebackType
from typing import Any, Callable, TypeVar

from perseus_hooks import calls
from perseus_hooks.adapters.jax_clients import stage_clients
from perseus_hooks.adapters.jax_marks import Marks
from perseus_hooks.adapters.readiness import Lane, Work, waiter
from perseus_hooks.client import Client
from perseus_hooks.log import Once

__all__ = ["Marks", "Task", "Tasks", "iterations", "stage_clients", "task"]

SMALL_BYTES = 4096  # arrays up to this are held until they are ready, of larger ones only one
LOOKED_AT = 32  # leaves at either end of a result: a training state has thousands

Result = TypeVar("Result")


class Tasks:
    """What one rank dispatches. One for each rank: its devices work on its tasks in their order.

    client: of this rank; None: the process's own, as the module's calls use it.
    """

    def __init__(self, client: Client | None = None) -> None:
        self._client = client
        self._lane = Lane()
        self._introduced = client is not None
        self._once = Once()

    def task(
        self,
        instruction: str,
        *,
        microbatch: int = 0,
        chunk: int = 0,
        iteration: int | None = None,
        after: Any = None,
    ) -> Task:
        """A `with` block around the dispatch of one computation; hand its results to `result`.

        after: what the computation has to wait for beyond its own device, any pytree of arrays: an
        activation or gradient of another stage. Waiting for it is no part of the computation.
        """
        return Task(self, (instruction, microbatch, chunk, iteration), after)

    def iterations(self, function: Callable[..., Result]) -> Callable[..., Result]:
        """The function, with each of its calls told as an `iteration`, counted from 0."""
        number = 0

        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Result:
            nonlocal number
            with self.task("iteration", iteration=number) as iteration:
                result = iteration.result(function(*args, **kwargs))
            number += 1
            return result

        return counted

    def settle(self, timeout_s: float) -> bool:
        """For tests: wait until everything dispatched has been told; False after timeout_s."""
        return waiter.settle(timeout_s)

    def _speaks(self) -> bool:
        return calls.speaks() if self._client is None else self._client.heard()

    def _dispatched(self, task: Task) -> None:
        if not self._introduced:
            self._introduced = True
            calls.find(time_source="ready", **_place())
        instruction, _, chunk, _ = task.what
        plain = isinstance(instruction, str) and isinstance(chunk, int)  # an array is no key
        key = (instruction, chunk) if plain else None
        work = Work(self._reporter(task.what), key, task.dispatched_ns)
        work.after, work.results = task.after, task.results
        if not work.results:
            work.ended_ns = time.monotonic_ns()
        if not waiter.put(self._lane, work):
            self._say_once("too much is dispatched and not done; some tasks are not told")

    def _reporter(self, what: tuple[str, int, int, int | None]) -> Callable[[int, int, bool], None]:
        instruction, microbatch, chunk, iteration = what
        report = calls.report if self._client is None else self._client.report

        def told(start_ns: int, end_ns: int, known: bool) -> None:
            if not known:
                self._say_once(_UNKNOWN)
            report(
                start_ns,
                end_ns,
                instruction if known else "other",
                microbatch=microbatch,
                chunk=chunk,
                iteration=iteration,
            )

        return told

    def _say_once(self, text: str) -> None:
        self._once.warn(text, "perseusd does not hear of all tasks: %s", text)


_UNKNOWN = (
    "some are reported as 'other', since all that they gave back, or came after, was donated or "
    "deleted before it was ready: let them return something that is not, such as the loss"
)


class Task:
    """What `task` returns; enter it once."""

    def __init__(
        self, tasks: Tasks, what: tuple[str, int, int, int | None], after: Any = None
    ) -> None:
        self.what = what
        self.after: list[Any] = []
        self.results: list[Any] = []
        self.dispatched_ns = 0
        self._tasks = tasks
        self._waits_for = after
        self._told = False

    def result(self, outputs: Result) -> Result:
        """What the computation gave back, and gives it back itself: any pytree.

        It ends when these are ready. Of arrays above SMALL_BYTES one at most is held, since what
        one jitted call gives back is ready together; so of several calls pass what the last gave.
        """
        if self.dispatched_ns:
            try:
                self.results = _held(outputs)
                self._told = True
            except Exception as error:  # noqa: BLE001  a hook never raises
                self._tasks._say_once(f"a result is not understood ({error!r})")
        return outputs

    def __enter__(self) -> Task:
        try:
            if self._tasks._speaks():
                self.after = _held(self._waits_for)
                self.dispatched_ns = time.monotonic_ns()
        except Exception as error:  # noqa: BLE001  a hook never raises
            self._tasks._say_once(f"what a task comes after is not understood ({error!r})")
        self._waits_for = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Of what raised, or gave nothing to `result`, nothing is known and nothing told."""
        try:
            if self._told and kind is None:
                self._tasks._dispatched(self)
            elif self.dispatched_ns and kind is None:
                self._tasks._say_once("a task's result() was not called, or not with a result")
        except Exception as problem:  # noqa: BLE001  a hook never raises
            self._tasks._say_once(repr(problem))
        self.after, self.results = [], []


def _held(tree: Any) -> list[Any]:
    """The arrays of a tree that tell when all of them are ready, and hold little memory.

    Raises TypeError inside a jitted function: nothing is computed there.
    """
    import jax

    leaves = jax.tree_util.tree_leaves(tree)
    if len(leaves) > 2 * LOOKED_AT:
        leaves = leaves[:LOOKED_AT] + leaves[-LOOKED_AT:]
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        raise TypeError("a task is around what is dispatched, not inside a jitted function")
    arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]
    small = [array for array in arrays if array.nbytes <= SMALL_BYTES]
    return small or sorted(arrays, key=lambda array: array.nbytes)[:1]


def _place() -> dict[str, int]:
    """Rank and world size of a job of several processes. Asked when arrays are there, and so JAX's
    backend: asking earlier would start it.
    """
    import jax

    if jax.process_count() < 2:
        return {}  # each process for itself: its launcher knows more
    return {"rank": jax.process_index(), "world_size": jax.process_count()}


_own = Tasks()
task = _own.task
iterations = _own.iterations
