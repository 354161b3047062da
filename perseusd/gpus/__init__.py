"""The GPUs of this node: real ones through NVML, or simulated ones in a shared mapped file."""

from __future__ import annotations

from pathlib import Path

from perseusd.gpus.base import GpuNode


def open_gpus(simulated: Path | str | None = None) -> GpuNode:
    """The node's GPUs: those simulated in that file, or else the real ones.

    GpuError if the file is damaged or there is no working driver. pynvml is imported for real
    GPUs only.
    """
    if simulated is not None:
        from perseusd.gpus.simulated import open_node

        return open_node(simulated)
    from perseusd.gpus.nvml import NvmlNode

    return NvmlNode()
