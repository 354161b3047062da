"""Records orders of torch's pipeline schedules, one file each, in the folder `recorded` here.

    pip install torch && python record.py

The files are output of torch 2.13.0; tests need them and not torch. `printed` is what torch's
`get_schedule_ops` says, `executed` what a schedule calls on its stage: of torch's 1F1B, the first
is off by one on the last rank, and the second is right. `built` is `_get_1f1b_rank_ops` with one
stage per rank and zero bubble on, which is ZB-H1: torch's own class asks for two stages or more.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable
from pathlib import Path
from unittest import mock

import torch
from torch.distributed.pipelining import Schedule1F1B, schedules
from torch.distributed.pipelining._schedule_visualizer import get_schedule_ops
from torch.distributed.pipelining.stage import PipelineStage

FOLDER = Path(__file__).parent / "recorded"

SIZES = {
    "GPipe": [(1, 3, 1), (4, 8, 1), (3, 2, 1)],
    "1F1B": [(2, 2, 1), (4, 8, 1), (3, 7, 1), (8, 12, 1)],
    "Interleaved1F1B": [
        (2, 4, 2), (4, 8, 2), (4, 4, 2), (4, 10, 2), (4, 3, 2), (3, 6, 3), (8, 16, 2),
    ],
    "InterleavedZeroBubble": [(2, 4, 2), (4, 8, 2), (3, 6, 3)],
    "ZBVZeroBubble": [(2, 4, 2), (4, 8, 2), (3, 7, 2), (8, 16, 2)],
    "DualPipeV": [(2, 4, 2), (4, 8, 2), (3, 7, 2), (8, 16, 2)],
}  # fmt: skip
"""(stages or ranks, microbatches, chunks)."""

ZB_H1_SIZES = [(1, 3), (2, 4), (4, 8), (4, 2), (8, 12)]


def printed(name: str, ranks: int, microbatches: int, chunks: int) -> list[str]:
    with contextlib.redirect_stdout(io.StringIO()):
        orders = get_schedule_ops(name, ranks, microbatches, chunks)
    return [_line(order) for order in orders]


def executed_1f1b(ranks: int, microbatches: int) -> list[str]:
    return [_executed_1f1b(rank, ranks, microbatches) for rank in range(ranks)]


def _executed_1f1b(rank: int, ranks: int, microbatches: int) -> str:
    called: list[str] = []
    stage = mock.create_autospec(PipelineStage, instance=True)
    stage.num_stages = stage.group_size = ranks
    stage.stage_index = stage.group_rank = rank
    stage.is_first, stage.is_last = rank == 0, rank == ranks - 1
    stage.has_backward = True
    stage.get_fwd_recv_ops.return_value = stage.get_fwd_send_ops.return_value = []
    stage.get_bwd_recv_ops.return_value = stage.get_bwd_send_ops.return_value = []
    stage.forward_one_chunk.side_effect = lambda m, *_, **__: called.append(f"{rank}F{m}")
    stage.backward_one_chunk.side_effect = lambda m, *_, **__: called.append(f"{rank}B{m}")
    schedule = Schedule1F1B(stage, microbatches)
    schedule._stage_forward_initialized = schedule._stage_backward_initialized = True
    schedule._initialize_stage = mock.Mock()
    inputs = [() for _ in range(microbatches)]
    schedule._step_microbatches(inputs, [{} for _ in inputs])
    return " ".join(called)


def built_zb_h1(ranks: int, microbatches: int) -> list[str]:
    lines = []
    for rank in range(ranks):
        ahead = min(ranks - 1 - rank, microbatches)
        order = schedules._get_1f1b_rank_ops(
            1, ranks, ahead, microbatches - ahead, ahead, rank,
            lambda step, rank=rank: rank, lambda step, rank=rank: rank,
            num_1f1b_microbatches=rank, enable_zero_bubble=True,
        )  # fmt: skip
        lines.append(_line(order))
    return lines


def _line(order: Iterable[object]) -> str:
    return " ".join(str(action) for action in order if action is not None)


def _write(name: str, how: str, sizes: tuple[int, ...], lines: list[str]) -> None:
    head = f"# torch {torch.__version__}, {name}, {how}; ranks, microbatches, chunks: {sizes}"
    path = FOLDER / f"{name}-{how}-{'-'.join(map(str, sizes))}.txt"
    path.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, sizes in SIZES.items():
        for ranks, microbatches, chunks in sizes:
            lines = printed(name, ranks, microbatches, chunks)
            _write(name, "printed", (ranks, microbatches, chunks), lines)
    for ranks, microbatches, _ in SIZES["1F1B"]:
        _write("1F1B", "executed", (ranks, microbatches, 1), executed_1f1b(ranks, microbatches))
    for ranks, microbatches in ZB_H1_SIZES:
        _write("ZBH1", "built", (ranks, microbatches, 1), built_zb_h1(ranks, microbatches))


if __name__ == "__main__":
    main()
