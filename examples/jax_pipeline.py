"""A pipeline in JAX whose stages are dispatched one by one, seen by perseusd.

    perseusd run --simulate 4 --runtime-dir /tmp/perseus       # in another terminal, first
    PERSEUS_RUNTIME_DIR=/tmp/perseus python examples/jax_pipeline.py
    PERSEUS_RUNTIME_DIR=/tmp/perseus perseusctl status         # meanwhile: four ranks of one job

It runs on four devices of the CPU, computes for real, and needs no GPU; without a daemon it runs as
well. On GPUs leave out the two lines that choose the CPU. The stages are of unequal depth, as real
ones are. What is simulated beside it are GPUs that this job does not load, so the daemon learns its
order and its times, and saves nothing here.

What perseusd needs is marked with `perseus` below: a client for each stage of this process, and a
`with` block around each dispatch. Nothing waits for a result but the loop that prints the loss.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from perseus_hooks.adapters.jax import Tasks, stage_clients  # perseus

DEPTHS = (6, 4, 3, 5)  # layers of each stage
STAGES = len(DEPTHS)
MICROBATCHES = 6
ROWS, WIDTH = 128, 256
RATE = 0.05


def stage_of(weights, x):
    """One stage: a matrix for each of its layers."""
    for matrix in weights:
        x = x + jnp.tanh(x @ matrix)
    return x


@jax.jit
def forward(weights, x):
    return stage_of(weights, x)


@jax.jit
def backward(weights, x, gradient):
    """Gradients of the weights and of x; the forward pass is computed again."""
    return jax.vjp(stage_of, weights, x)[1](gradient)


@jax.jit
def loss_of(y, target):
    """The loss, and its gradient with respect to y."""
    return jax.value_and_grad(lambda y: jnp.mean((y - target) ** 2))(y)


@jax.jit
def updated(weights, gradients):
    return [w - RATE / MICROBATCHES * g for w, g in zip(weights, gradients)]  # noqa: B905


def schedule(stage):
    """1F1B: what this stage does, in order, as (instruction, microbatch)."""
    warm_up = min(STAGES - stage - 1, MICROBATCHES)
    order = [("forward", m) for m in range(warm_up)]
    for m in range(MICROBATCHES - warm_up):
        order += [("forward", m + warm_up), ("backward", m)]
    return order + [("backward", m) for m in range(MICROBATCHES - warm_up, MICROBATCHES)]


class Pipeline:
    def __init__(self):
        self.devices = jax.devices()[:STAGES]
        keys = jax.random.split(jax.random.key(0), STAGES)
        self.weights = [
            jax.device_put(jax.random.normal(key, (depth, WIDTH, WIDTH)) / WIDTH, device)
            for key, depth, device in zip(keys, DEPTHS, self.devices)  # noqa: B905
        ]
        self.weights = [list(stage) for stage in self.weights]
        clients = stage_clients(STAGES, schedule="1f1b", gpus=range(STAGES))  # perseus
        self.tasks = [Tasks(client) for client in clients]  # perseus

    def train(self, iteration, xs, targets):
        """One iteration. Returns its loss, which is not computed yet."""
        self.inputs = {(0, m): jax.device_put(x, self.devices[0]) for m, x in enumerate(xs)}
        self.gradients, self.losses = {}, []
        self.sums = [None] * STAGES
        left = [schedule(stage) for stage in range(STAGES)]
        while any(left):
            for stage, order in enumerate(left):
                if order and self._there(stage, *order[0]):
                    self._dispatch(stage, iteration, *order.pop(0), targets)
        for stage in range(STAGES):
            self.weights[stage] = updated(self.weights[stage], self.sums[stage])
        return sum(self.losses) / MICROBATCHES

    def _there(self, stage, instruction, m):
        """Whether what it needs has been dispatched."""
        return (stage, m) in (self.inputs if instruction == "forward" else self.gradients)

    def _dispatch(self, stage, iteration, instruction, m, targets):
        if instruction == "forward":
            x = self.inputs[stage, m]
            with self.tasks[stage].task(  # perseus
                "forward", microbatch=m, iteration=iteration, after=x
            ) as task:
                y = task.result(forward(self.weights[stage], x))
            self._send_on(stage, m, y, targets)
        else:
            x, gradient = self.inputs.pop((stage, m)), self.gradients.pop((stage, m))
            with self.tasks[stage].task(  # perseus
                "backward", microbatch=m, iteration=iteration, after=gradient
            ) as task:
                own, back = task.result(backward(self.weights[stage], x, gradient))
            total = self.sums[stage]
            self.sums[stage] = own if total is None else jax.tree.map(jnp.add, total, own)
            if stage > 0:
                self.gradients[stage - 1, m] = jax.device_put(back, self.devices[stage - 1])

    def _send_on(self, stage, m, y, targets):
        if stage + 1 < STAGES:
            self.inputs[stage + 1, m] = jax.device_put(y, self.devices[stage + 1])
        else:
            loss, self.gradients[stage, m] = loss_of(y, targets[m])
            self.losses.append(loss)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--every", type=int, default=10, help="iterations between two losses")
    arguments = parser.parse_args()
    pipeline = Pipeline()
    keys = jax.random.split(jax.random.key(1), 2)
    xs = jax.random.normal(keys[0], (MICROBATCHES, ROWS, WIDTH))
    targets = jax.device_put(jax.random.normal(keys[1], xs.shape), pipeline.devices[-1])
    for iteration in range(arguments.iterations):
        loss = pipeline.train(iteration, xs, targets)
        if iteration % arguments.every == 0:
            print(f"iteration {iteration}: loss {float(loss):.6f}", flush=True)


if __name__ == "__main__":
    main()
