"""Plain PyTorch with DistributedDataParallel, reported to perseusd. On CPU, and over in seconds.

Without a daemon the calls do nothing:

    pip install torch ./hooks
    torchrun --nproc-per-node 2 examples/torch_ddp.py

Beside a daemon on two simulated GPUs, in another terminal:

    perseusd run --simulate 2 --runtime-dir /tmp/perseus
    PERSEUS_RUNTIME_DIR=/tmp/perseus torchrun --nproc-per-node 2 examples/torch_ddp.py
    perseusctl --runtime-dir /tmp/perseus status    # while it trains

Each process is a replica: a pipeline of one stage. A microbatch's forward waits for nobody. The
last microbatch's backward ends with the wait for the other replicas' gradients, which is no
computing: `gradients.backward` ends the span before it, so that a slow replica can be told from
those that wait for it.
"""

from __future__ import annotations

import argparse
import contextlib

import perseus_hooks
import torch
import torch.distributed as dist
from perseus_hooks.adapters import gradients
from torch import nn
from torch.nn.parallel import DistributedDataParallel

MICROBATCHES = 4
WIDTH = 512


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a small network, data-parallel, on CPU.", allow_abbrev=False
    )
    parser.add_argument("--iterations", type=int, default=100)
    return parser.parse_args()


def train(rank: int, replicas: int, iterations: int) -> float:
    """The last microbatch's loss."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))
    model = DistributedDataParallel(network)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    data = torch.Generator().manual_seed(rank)

    perseus_hooks.configure(stage=0, stages=1, replica=rank, replicas=replicas)

    loss = torch.zeros(())
    for iteration in range(iterations):
        for microbatch in range(MICROBATCHES):
            batch = torch.randn(64, WIDTH, generator=data)
            last = microbatch == MICROBATCHES - 1
            with contextlib.nullcontext() if last else model.no_sync():
                with perseus_hooks.stage("forward", microbatch=microbatch, iteration=iteration):
                    loss = (model(batch) - batch.mean(1, keepdim=True)).square().mean()
                with gradients.backward(loss, microbatch=microbatch, iteration=iteration):
                    (loss / MICROBATCHES).backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def main() -> None:
    iterations = arguments().iterations
    dist.init_process_group("gloo")
    try:
        loss = train(dist.get_rank(), dist.get_world_size(), iterations)
        if dist.get_rank() == 0:
            print(f"loss {loss:.4f} after {iterations} iterations")
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
