"""A pipeline of torch.distributed.pipelining that perseusd watches: one line more.

    perseusd run --simulate 2 --runtime-dir DIR                            # in one terminal
    PERSEUS_RUNTIME_DIR=DIR torchrun --nproc-per-node 2 examples/torch_pipeline.py   # in another
    PERSEUS_RUNTIME_DIR=DIR perseusctl status --watch                      # in a third

It also runs without a daemon, and on GPUs where there are two or more. The first stage has twice as
many layers as the second, so the second waits for it: `status` shows the critical path. Two ranks
that compute on one small CPU take each other's time; what is seen there is the order, not a saving.
"""

import argparse

import torch
import torch.distributed as dist
from perseus_hooks.adapters import torch_pipelining
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

MICROBATCHES = 8
BATCH, LENGTH, WIDTH = 16, 64, 256
LAYERS = (4, 2)  # by stage


class Part(nn.Module):
    """Some layers of a transformer; the last stage ends in one number per token."""

    def __init__(self, layers, last):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, nhead=4, dropout=0.0, batch_first=True)
            for _ in range(layers)
        )
        self.head = nn.Linear(WIDTH, 1) if last else nn.Identity()

    def forward(self, tokens):
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head(tokens)


def main(iterations):
    on_gpu = torch.cuda.device_count() > 1
    dist.init_process_group("nccl" if on_gpu else "gloo")
    rank, stages = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    torch.manual_seed(rank)
    part = Part(LAYERS[rank % len(LAYERS)], last=rank == stages - 1).to(device)
    stage = PipelineStage(part, rank, stages, device)
    schedule = Schedule1F1B(stage, MICROBATCHES, loss_fn=nn.MSELoss())
    optimizer = torch.optim.AdamW(part.parameters(), lr=1e-4)

    torch_pipelining.instrument(schedule)  # all that perseusd needs

    for iteration in range(iterations):
        optimizer.zero_grad()
        losses = []
        if rank == 0:
            schedule.step(torch.randn(BATCH, LENGTH, WIDTH, device=device), losses=losses)
        else:
            target = torch.zeros(BATCH, LENGTH, 1, device=device)
            schedule.step(target=target, losses=losses)
        optimizer.step()
        if losses and iteration % 5 == 4:
            print(f"iteration {iteration + 1}: loss {torch.stack(losses).mean():.4f}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="A pipeline that perseusd watches.", allow_abbrev=False
    )
    parser.add_argument("--iterations", type=int, default=20)
    main(parser.parse_args().iterations)
