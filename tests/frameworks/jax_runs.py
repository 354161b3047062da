"""What test_jax.py runs in processes of its own: `jax_runs.py NAME…` prints one JSON object.

JAX in pytest's own process would warn at every later fork, and its devices are set at its start.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import sys
import threading
import time
from typing import Any

STAGES, MICROBATCHES, SIZE = 4, 6, 32
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={STAGES}"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from perseus_hooks.adapters.jax import Marks, Tasks  # noqa: E402
from perseus_hooks.client import Client  # noqa: E402
from perseus_hooks.identity import Arguments, identify  # noqa: E402
from perseus_hooks.testing import Recording, record  # noqa: E402

PATIENCE_S = 60.0


class Log(logging.Handler):
    """What a user would read."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        logging.getLogger("perseus_hooks").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def spans(recording: Recording) -> list[list[Any]]:
    return [
        [s.instruction, s.microbatch, s.iteration, s.start_ns, s.end_ns] for s in recording.spans
    ]


def recorded_client(rank: int) -> tuple[Client, Recording]:
    recording = Recording()
    hello = identify(Arguments(rank=rank, stage=rank, stages=STAGES), {}, print)
    return Client(hello, "", outlet=recording), recording


@jax.jit
def long(x: Any) -> Any:
    """Some hundred milliseconds, and no two parts of it at once."""
    return jax.lax.fori_loop(0, 150, lambda i, y: jnp.tanh(y @ x), x)


def whole_iterations() -> dict[str, Any]:
    """Three iterations that depend on each other, dispatched at once; and when each was ready."""
    x = jnp.full((400, 400), 0.01)
    jax.block_until_ready(long(x))

    def train_step(state: Any) -> tuple[Any, Any]:
        state = long(state)
        return state, state[0, 0]

    plain, losses = x, []
    for _ in range(3):
        plain, loss = train_step(plain)
        losses.append(float(loss))
    tasks = Tasks()
    with record() as recording:
        told, state, dispatched_ns, hooked = tasks.iterations(train_step), x, [], []
        before_ns = time.monotonic_ns()
        for _ in range(3):
            state, loss = told(state)
            dispatched_ns.append(time.monotonic_ns())
            hooked.append(loss)
        unready_ns = [last_unready_ns(loss) for loss in hooked]
        over_ns = time.monotonic_ns()
        settled = tasks.settle(PATIENCE_S)
    return {
        "spans": spans(recording),
        "before_ns": before_ns,
        "dispatched_ns": dispatched_ns,
        "unready_ns": unready_ns,
        "over_ns": over_ns,
        "settled": settled,
        "time_source": recording.hello.time_source,
        "losses": losses,
        "hooked": [float(loss) for loss in hooked],
    }


def last_unready_ns(array: Any) -> int:
    """When it was last seen not to be ready."""
    unready_ns, asked_ns = 0, time.monotonic_ns()
    while not array.is_ready():
        unready_ns = asked_ns
        time.sleep(0.001)
        asked_ns = time.monotonic_ns()
    return unready_ns


def schedule(stage: int) -> list[tuple[str, int]]:
    """1F1B."""
    warm_up = min(STAGES - stage - 1, MICROBATCHES)
    order = [("forward", m) for m in range(warm_up)]
    for m in range(MICROBATCHES - warm_up):
        order += [("forward", m + warm_up), ("backward", m)]
    return order + [("backward", m) for m in range(MICROBATCHES - warm_up, MICROBATCHES)]


def stage_function(weights: Any, x: Any) -> Any:
    return jnp.tanh(x @ weights)


forward = jax.jit(stage_function)
last = jax.jit(lambda y: jnp.sum(y**2))


@jax.jit
def backward(weights: Any, x: Any, gradient: Any) -> Any:
    return jax.vjp(stage_function, weights, x)[1](gradient)


def pipeline(tasks: list[Tasks] | None, iteration: int, weights: list[Any], xs: Any) -> Any:
    """One iteration, each stage's tasks dispatched on its own device. Returns the gradients."""
    devices = jax.devices()
    left = [schedule(stage) for stage in range(STAGES)]
    inputs: dict[tuple[int, int], Any] = {}
    gradients: dict[tuple[int, int], Any] = {}
    total: list[Any] = [0.0] * STAGES
    for m in range(MICROBATCHES):
        inputs[0, m] = jax.device_put(xs[m], devices[0])

    def dispatch(stage: int, what: str, m: int) -> None:
        after = (inputs if what == "forward" else gradients)[stage, m]
        block: Any = contextlib.nullcontext()
        if tasks is not None:
            block = tasks[stage].task(what, microbatch=m, iteration=iteration, after=after)
        with block as task:
            if what == "forward":
                out = forward(weights[stage], inputs[stage, m])
            else:
                out = backward(weights[stage], inputs.pop((stage, m)), after)
            if task is not None:
                out = task.result(out)
        if what == "backward":
            total[stage] = total[stage] + out[0]
            if stage:
                gradients[stage - 1, m] = jax.device_put(out[1], devices[stage - 1])
        elif stage + 1 < STAGES:
            inputs[stage + 1, m] = jax.device_put(out, devices[stage + 1])
        else:
            gradients[stage, m] = jax.grad(last)(out)

    while any(left):
        for stage, order in enumerate(left):
            if order and (stage, order[0][1]) in (
                inputs if order[0][0] == "forward" else gradients
            ):
                dispatch(stage, *order.pop(0))
    return total


def per_task() -> dict[str, Any]:
    """Three iterations of a 1F1B pipeline of four devices, and the same without hooks."""
    devices = jax.devices()
    keys = jax.random.split(jax.random.key(0), STAGES + 1)
    weights = [
        jax.device_put(jax.random.normal(keys[s], (SIZE, SIZE)) / 8, devices[s])
        for s in range(STAGES)
    ]
    xs = jax.random.normal(keys[-1], (MICROBATCHES, SIZE, SIZE))
    plain = pipeline(None, 0, weights, xs)
    made = [recorded_client(rank) for rank in range(STAGES)]
    tasks = [Tasks(client) for client, _ in made]
    for iteration in range(3):
        hooked = pipeline(tasks, iteration, weights, xs)
    settled = tasks[0].settle(PATIENCE_S)
    return {
        "ranks": [spans(recording) for _, recording in made],
        "schedules": [schedule(stage) for stage in range(STAGES)],
        "settled": settled,
        "equal": all(bool(jnp.all(a == b)) for a, b in zip(plain, hooked, strict=True)),
    }


def rough() -> dict[str, Any]:
    """What may go wrong: donated results, exceptions, no result, a task inside jit, no arrays."""
    log = Log()
    tasks = Tasks()
    found: dict[str, Any] = {}
    x = jnp.full((400, 400), 0.01)
    donated = jax.jit(lambda state: long(state), donate_argnums=0)
    with_loss = jax.jit(lambda state: ((y := long(state)), y[0, 0]), donate_argnums=0)
    state = donated(x + 0)
    state, _ = with_loss(state)

    with record() as recording:
        for number in range(3):
            with tasks.task("forward", microbatch=number) as task:
                state, _ = task.result(with_loss(state))
        tasks.settle(PATIENCE_S)
        found["with loss"] = spans(recording)
    with record() as recording:
        for number in range(3):  # each takes the one before, long before that is ready
            with tasks.task("forward", microbatch=number) as task:
                state = task.result(donated(state))
        tasks.settle(PATIENCE_S)
        found["all donated"] = spans(recording)
        with tasks.task("backward", microbatch=0) as task:
            state = task.result(long(state))
        tasks.settle(PATIENCE_S)
        with tasks.task("backward", microbatch=1) as task:
            state = task.result(long(state))
        tasks.settle(PATIENCE_S)
        found["afterwards"] = spans(recording)[3:]
    with record() as recording:
        other = jax.devices()[1]
        jax.block_until_ready(long(jax.device_put(x, other)))  # compiled for it
        moved = jax.device_put(long(x), other)
        with tasks.task("forward", after=moved) as task:
            task.result(long(moved))
        found["input unready"] = last_unready_ns(moved)
        tasks.settle(PATIENCE_S)
        found["after an input"] = spans(recording)
    with record() as recording:
        try:
            with tasks.task("forward") as task:
                task.result(jnp.ones((2, 3)) @ jnp.ones((2, 3)))
        except TypeError as error:
            found["raised"] = type(error).__name__
        with tasks.task("forward"):
            pass

        @jax.jit
        def inside(value: Any) -> Any:
            with tasks.task("forward", after=value) as task:
                return task.result(value + 1)

        found["inside"] = float(inside(jnp.float32(1)))
        found["same object"] = task.result(found) is found
        with tasks.task("iteration") as task:
            task.result(3.5)
        with tasks.task("iteration") as task:
            task.result({"key": jax.random.key(0), "more": [jnp.ones(3), None, "text"]})
        with tasks.task("iteration", chunk=jnp.int32(0)) as task:
            task.result(jnp.ones(3))
        tasks.settle(PATIENCE_S)
        found["odd"] = [span[0] for span in spans(recording)]
    found["log"] = log.lines
    return found


def shard_map_pipeline(marks: Marks | None) -> Any:
    """GPipe as one jitted function: value and gradients of a loss."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("stage",))
    spec = jax.sharding.PartitionSpec

    def local(weights: Any, xs: Any) -> Any:
        stage = jax.lax.axis_index("stage")
        mine = weights[0]

        def tick(received: Any, t: Any) -> Any:
            x = jnp.where(stage == 0, xs[jnp.clip(t, 0, MICROBATCHES - 1)], received)
            used = mine
            if marks is not None:
                x, used = marks.start(x, mine, stage=stage, microbatch=t - stage)
            y = stage_function(used, x)
            if marks is not None:
                y = marks.end(y, stage=stage, microbatch=t - stage)
            onward = [(s, (s + 1) % STAGES) for s in range(STAGES)]
            m = t - stage
            wanted = (stage == STAGES - 1) & (m >= 0)
            return jax.lax.ppermute(y, "stage", onward), jnp.where(wanted, jnp.sum(y**2), 0.0)

        empty = jnp.zeros_like(xs[0]) + 0 * mine[0, 0]
        _, losses = jax.lax.scan(tick, empty, jnp.arange(MICROBATCHES + STAGES - 1))
        return jax.lax.psum(jnp.sum(losses), "stage")

    sharded = jax.shard_map(local, mesh=mesh, in_specs=(spec("stage"), spec()), out_specs=spec())
    return jax.jit(jax.value_and_grad(sharded))


def marks() -> dict[str, Any]:
    """Three training iterations with marks, three without, and forward alone."""
    keys = jax.random.split(jax.random.key(1), 2)
    first = jax.random.normal(keys[0], (STAGES, SIZE, SIZE)) / 4
    xs = jax.random.normal(keys[1], (MICROBATCHES, SIZE, SIZE))
    made = [recorded_client(rank) for rank in range(STAGES)]
    marked = Marks([client for client, _ in made], microbatches=MICROBATCHES)
    losses: dict[str, list[str]] = {}
    for name, used in (("plain", None), ("marked", marked)):
        weights, step = first, shard_map_pipeline(used)
        for _ in range(3):
            loss, gradients = step(weights, xs)
            weights = weights - 1e-3 * gradients
            losses.setdefault(name, []).append(float(loss).hex())
        losses[name].append(np.asarray(weights).tobytes().hex()[:2000])
    return {
        "ranks": [spans(recording) for _, recording in made],
        "open": [len(recording.open) for _, recording in made],
        "losses": losses,
    }


def leave() -> None:
    """Fork, and then end the interpreter by an exception, with work dispatched and not done."""
    x = jnp.full((400, 400), 0.01)
    atexit.register(after_ours)  # exit handlers run in the order opposite to that of registration
    kept.enter_context(record())  # to the end of this process
    tasks = Tasks()
    for microbatch in range(4):
        with tasks.task("forward", microbatch=microbatch) as task:
            x = task.result(long(x))
    threads.extend(thread.name for thread in threading.enumerate())
    leave_in_child(tasks)
    pending.append(x)
    raise SystemExit(3)


kept = contextlib.ExitStack()
pending: list[Any] = []
threads: list[str] = []


def after_ours() -> None:
    """When our thread is to be gone, and JAX has not been taken down."""
    left = [thread.name for thread in threading.enumerate()]
    found = {"pending": not pending[0].is_ready(), "before": threads, "left": left}
    sys.stdout.write(json.dumps(found))


def leave_in_child(tasks: Tasks) -> None:
    """A forked child, as data loaders are, has no thread of ours, says nothing and ends at once."""
    child = os.fork()
    if child == 0:
        with tasks.task("forward") as task:
            task.result(1.0)
        silent = len(threading.enumerate()) == 1 and not Tasks()._speaks()
        os._exit(0 if silent else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0


def main() -> None:
    if sys.argv[1] == "leave":
        leave()
    runs = {"whole": whole_iterations, "tasks": per_task, "rough": rough, "marks": marks}
    found = {name: runs[name]() for name in sys.argv[1:]}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
