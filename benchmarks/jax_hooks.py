"""What perseusd costs a JAX pipeline: iteration time with hooks over the time without, in pairs.

    python benchmarks/jax_hooks.py [--json] [--pairs N] [--width N …]

Four devices of the CPU, no daemon needed (a client sends to one that listens and takes all). Two
pipelines: `tasks`, whose stages are dispatched one by one with a `with` block around each; and
`marks`, one jitted shard_map with marks inside, which call the host four times for each stage,
microbatch and bubble. Iterations with and without hooks take turns, and each pair gives one ratio;
shown are their median and quartiles. On fewer cores than devices the times are noisy.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

STAGES, MICROBATCHES, ROWS = 4, 6, 64
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={STAGES}"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from perseus_hooks.adapters.jax import Marks, Tasks, stage_clients  # noqa: E402
from perseus_hooks.client import Client  # noqa: E402

Iteration = Callable[[], Any]
LAYERS = 4


def stage_function(weights: Any, x: Any) -> Any:
    for layer in range(LAYERS):
        x = jnp.tanh(x @ weights[layer])
    return x


def with_tasks(clients: list[Client] | None, width: int) -> Iteration:
    """One iteration of GPipe, each stage's tasks dispatched on its device."""
    devices = jax.devices()
    weights = [jax.device_put(_weights(s, width), devices[s]) for s in range(STAGES)]
    forward = jax.jit(stage_function)
    backward = jax.jit(lambda w, x, g: jax.vjp(stage_function, w, x)[1](g))
    tasks = [Tasks(client) for client in clients] if clients is not None else None
    xs = [jax.device_put(jnp.full((ROWS, width), 0.1 * m), devices[0]) for m in range(MICROBATCHES)]

    def told(stage: int, what: str, m: int, after: Any, dispatch: Callable[[], Any]) -> Any:
        if tasks is None:
            return dispatch()
        with tasks[stage].task(what, microbatch=m, after=after) as task:
            return task.result(dispatch())

    def iteration() -> Any:
        kept, outputs, gradients = {}, list(xs), []
        for stage in range(STAGES):
            for m in range(MICROBATCHES):
                x = kept[stage, m] = jax.device_put(outputs[m], devices[stage])
                outputs[m] = told(
                    stage, "forward", m, x, lambda s=stage, x=x: forward(weights[s], x)
                )
        for stage in reversed(range(STAGES)):
            for m in range(MICROBATCHES):
                g = jax.device_put(outputs[m], devices[stage])
                x = kept.pop((stage, m))
                own, outputs[m] = told(
                    stage, "backward", m, g, lambda s=stage, x=x, g=g: backward(weights[s], x, g)
                )
                gradients.append(own)
        return gradients

    return iteration


def with_marks(clients: list[Client] | None, width: int) -> Iteration:
    """One iteration of GPipe as one jitted function."""
    marks = Marks(clients, microbatches=MICROBATCHES) if clients is not None else None
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("stage",))
    spec = jax.sharding.PartitionSpec

    def local(weights: Any, xs: Any) -> Any:
        stage, own = jax.lax.axis_index("stage"), weights[0]

        def tick(received: Any, t: Any) -> Any:
            x, used = jnp.where(stage == 0, xs[jnp.clip(t, 0, MICROBATCHES - 1)], received), own
            if marks is not None:
                x, used = marks.start(x, own, stage=stage, microbatch=t - stage)
            y = stage_function(used, x)
            if marks is not None:
                y = marks.end(y, stage=stage, microbatch=t - stage)
            onward = [(s, (s + 1) % STAGES) for s in range(STAGES)]
            wanted = (stage == STAGES - 1) & (t >= stage)
            return jax.lax.ppermute(y, "stage", onward), jnp.where(wanted, jnp.sum(y**2), 0.0)

        empty = jnp.zeros_like(xs[0]) + 0 * own[0, 0, 0]
        _, losses = jax.lax.scan(tick, empty, jnp.arange(MICROBATCHES + STAGES - 1))
        return jax.lax.psum(jnp.sum(losses), "stage")

    sharded = jax.shard_map(local, mesh=mesh, in_specs=(spec("stage"), spec()), out_specs=spec())
    step = jax.jit(jax.value_and_grad(sharded))
    weights = jnp.stack([_weights(s, width) for s in range(STAGES)])
    xs = jnp.stack([jnp.full((ROWS, width), 0.1 * m) for m in range(MICROBATCHES)])
    return lambda: step(weights, xs)


def _weights(stage: int, width: int) -> Any:
    return jax.random.normal(jax.random.key(stage), (LAYERS, width, width)) / width**0.5


def measure(name: str, make: Any, width: int, pairs: int, clients: list[Client]) -> dict[str, Any]:
    plain, hooked = make(None, width), make(clients, width)
    for _ in range(3):
        _seconds(plain)
        _seconds(hooked)
    measured = [_pair(plain, hooked, number % 2 == 1) for number in range(pairs)]
    ratios = [hooked_s / plain_s for plain_s, hooked_s in measured]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "pipeline": name,
        "width": width,
        "pairs": pairs,
        "plain_ms": round(1e3 * statistics.median(plain_s for plain_s, _ in measured), 2),
        "hooked_ms": round(1e3 * statistics.median(hooked_s for _, hooked_s in measured), 2),
        "ratio": round(middle, 4),
        "ratio_quartiles": [round(low, 4), round(high, 4)],
    }


def _pair(plain: Iteration, hooked: Iteration, hooked_first: bool) -> tuple[float, float]:
    """Seconds without and with hooks; which comes first takes turns."""
    if hooked_first:
        hooked_s = _seconds(hooked)
        return _seconds(plain), hooked_s
    return _seconds(plain), _seconds(hooked)


def _seconds(iteration: Iteration) -> float:
    before_s = time.perf_counter()
    jax.block_until_ready(iteration())
    return time.perf_counter() - before_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--width", type=int, nargs="+", default=[128, 512])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, _listener(folder):
        os.environ["PERSEUS_RUNTIME_DIR"] = folder
        clients = stage_clients(STAGES)
        rows = [
            measure(name, make, width, arguments.pairs, clients)
            for name, make in (("tasks", with_tasks), ("marks", with_marks))
            for width in arguments.width
        ]
    machine = f"JAX {jax.__version__}, {os.cpu_count()} CPUs, {platform.machine()}"
    if arguments.json:
        print(json.dumps({"schema_version": 1, "machine": machine, "rows": rows}, indent=1))
        return
    print(machine)
    for row in rows:
        low, high = row["ratio_quartiles"]
        print(
            f"{row['pipeline']}, width {row['width']:4}: {row['plain_ms']:8.2f} ms without, "
            f"{row['hooked_ms']:8.2f} ms with, ratio {row['ratio']:.3f} ({low:.3f} to {high:.3f})"
        )


class _listener:  # noqa: N801  used as a function is
    """A process that takes what clients send, as a daemon does."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        import subprocess
        import sys

        code = (
            "import sys, zmq; s = zmq.Context().socket(zmq.ROUTER); "
            "s.bind('ipc://' + sys.argv[1] + '/hooks.sock'); print('bound', flush=True)\n"
            "while True: s.recv_multipart()"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, self._folder], stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


if __name__ == "__main__":
    main()
