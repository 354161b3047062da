"""Refusals in words: what to do about each, within what a message to a client has room for."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST_NAME = 48
"""Characters of a name in a refusal: clients choose their names."""

LONGEST_INDEX = 8

NAMED_GPUS = 2
"""Of this node's, in a refusal: `perseusctl status` shows all."""


def unknown_gpu(gpu: str, known: Sequence[str]) -> str:
    """The remedy first, since what is too long is cut off at its end."""
    order, _, number = gpu.partition(":")
    by_index = order in ("index", "cuda-index") and len(number) <= LONGEST_INDEX
    which = f"{order} {number}" if by_index and number.isdecimal() else _quoted(gpu)
    return (
        "name a GPU of this node with PERSEUS_GPUS or configure(gpus=): "
        f"GPU {which} is not on this node, which has {_some(known)}"
    )


def gpu_held(uuid: str, holder: str) -> str:
    return (
        f"GPU {uuid} is held by job {_quoted(holder)}: wait for it to end, or choose other GPUs "
        "with PERSEUS_GPUS or gpus="
    )


def rank_taken(rank: int) -> str:
    return (
        f"rank {rank} of this job is another process, which still runs: set PERSEUS_RANK (or "
        "configure(rank=)), another for each process; a worker process should not call configure()"
    )


def _quoted(name: str) -> str:
    return repr(name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED_GPUS} more" if len(names) > NAMED_GPUS else ""
    return f"{', '.join(names[:NAMED_GPUS])}{more}" if names else "none"
