"""The GPUs of this node: real ones through NVML, or simulated ones in a shared mapped file."""

from __future__ import annotations

from pathlib import Path

from perseusd.gpus.base import GpuNode

OPEN_S = 3.0
"""Opening one GPU takes milliseconds, and where the driver has to wake it up a second or two; one
that takes longer comes later."""


def open_gpus(simulated: Path | str | None = None, wait_s: float = OPEN_S) -> GpuNode:
    """The node's GPUs: those simulated in that file, or else the real ones.

    wait_s: a GPU that takes longer to open is unavailable until `look_again` has it.

    GpuError if the file is damaged or there is no working driver. pynvml is imported for real
    GPUs only.
    """
    if simulated is not None:
        from perseusd.gpus.simulated import open_node

        return open_node(simulated)
    from perseusd.gpus.nvml import NvmlNode

    return NvmlNode(wait_s)
