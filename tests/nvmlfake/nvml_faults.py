"""Faults of the fake NVML library, set in its state file while processes use it."""

from __future__ import annotations

import struct
from pathlib import Path

HANG = -1  # the call returns once the fault is cleared
ANY_GPU = -1

GPU = struct.Struct("@4IQ")  # locked_mhz, writes, calls, mig, energy_mj
GPUS = 2
_FAULT = struct.Struct("@56sii")  # function, GPU, code
_SLOTS = 16


def gpus_of(state: Path) -> list[tuple[int, ...]]:
    """What the file says of each GPU, as in GPU."""
    return list(GPU.iter_unpack(state.read_bytes()[: GPUS * GPU.size]))


def set_faults(state: Path, *faults: tuple[str, int, int]) -> None:
    """These (function, GPU, NVML code) and no others, from each process's next call on."""
    if len(faults) > _SLOTS:
        raise ValueError(f"{len(faults)} faults: the table has {_SLOTS} places")
    table = b"".join(_FAULT.pack(name.encode(), gpu, code) for name, gpu, code in faults)
    state.touch()
    with state.open("r+b") as file:
        file.seek(GPUS * GPU.size)
        file.write(table.ljust(_SLOTS * _FAULT.size, b"\0"))
