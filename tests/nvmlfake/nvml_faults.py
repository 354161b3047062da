"""What tests set of the fake NVML library while processes use it, in the file beside the node.

`node` is always the path of the simulated GPUs' file. Everything counts from each process's next
call on; faults change all at once.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HANG = -1
"""As a code: the call returns once the fault is cleared."""
ANY_GPU = -1
ANY_FUNCTION = "*"

# as in controls.c
_HEADER = struct.Struct("@2I")  # the bank of faults in force, whether setting needs CAP_SYS_ADMIN
_FAULT = struct.Struct("@48siiiI")  # function, GPU, code, process, delay in µs
_SLOTS = 32
_GPUS_AT = _HEADER.size + 2 * _SLOTS * _FAULT.size
_PIDS = 16
_GPU = struct.Struct(f"@5I{_PIDS}I4x2Q")


@dataclass(frozen=True)
class Fault:
    """Calls of `function` on a GPU return this NVML code, after `delay_s`; 0 works all the same.

    function: "field" is each field of nvmlDeviceGetFieldValues. gpu: with ANY_GPU also calls that
    are about none, which one bad GPU does not hurt: since nvmlInit_v2 the driver opens, and counts,
    whatever state a GPU is in. pid: in this process alone; 0: in every one.
    """

    function: str
    gpu: int = ANY_GPU
    code: int = 0
    pid: int = 0
    delay_s: float = 0.0


@dataclass
class GpuControls:
    """What a GPU is besides its simulation.

    calls, set_calls: how often NVML was asked, whatever came of it, and how often for a write.
    vgpu: no clock can be chosen. persistence_off: locks are gone once no process uses the driver.
    processes: whose contexts it has; None: the emulated job that computes on it.
    """

    mig: bool = False
    vgpu: bool = False
    persistence_off: bool = False
    processes: Sequence[int] | None = None
    calls: int = 0
    set_calls: int = 0


def set_faults(node: Path, *faults: Fault | tuple[str, int, int]) -> None:
    """These (function, GPU, NVML code) and no others."""
    if len(faults) > _SLOTS:
        raise ValueError(f"{len(faults)} faults: the table has {_SLOTS} places")
    table = bytearray()
    for fault in faults:
        f = fault if isinstance(fault, Fault) else Fault(*fault)
        table += _FAULT.pack(f.function.encode(), f.gpu, f.code, f.pid, round(f.delay_s * 1e6))
    with _mapped(node) as memory:
        (bank, _) = _HEADER.unpack_from(memory)
        at = _HEADER.size + (1 - bank % 2) * _SLOTS * _FAULT.size
        memory[at : at + _SLOTS * _FAULT.size] = bytes(table.ljust(_SLOTS * _FAULT.size, b"\0"))
        with memoryview(memory) as view, view.cast("I") as words:
            words[0] = 1 - bank % 2


def require_admin(node: Path, required: bool = True) -> None:
    """Whether writing a clock needs CAP_SYS_ADMIN, as with the real driver."""
    with _mapped(node) as memory, memoryview(memory) as view, view.cast("I") as words:
        words[1] = required


def gpu_controls(node: Path, index: int) -> GpuControls:
    with _mapped(node, index + 1) as memory:
        values = _GPU.unpack_from(memory, _GPUS_AT + index * _GPU.size)
    mig, vgpu, persistence_off, processes_set, count = values[:5]
    processes = values[5 : 5 + count] if processes_set else None
    return GpuControls(bool(mig), bool(vgpu), bool(persistence_off), processes, *values[-2:])


def set_gpu(node: Path, index: int, controls: GpuControls) -> None:
    """As said there, counts included."""
    pids = list(controls.processes or ())
    if len(pids) > _PIDS:
        raise ValueError(f"{len(pids)} processes: a GPU has {_PIDS} places")
    flags = (controls.mig, controls.vgpu, controls.persistence_off, controls.processes is not None)
    places = pids + [0] * (_PIDS - len(pids))
    values = (*flags, len(pids), *places, controls.calls, controls.set_calls)
    with _mapped(node, index + 1) as memory:
        _GPU.pack_into(memory, _GPUS_AT + index * _GPU.size, *values)


@contextmanager
def _mapped(node: Path, gpus: int = 0) -> Iterator[mmap.mmap]:
    path = node.with_name(f"{node.name}.nvml")
    with path.open("a+b") as file:
        os.posix_fallocate(file.fileno(), 0, _GPUS_AT + gpus * _GPU.size)  # never makes it shorter
        with mmap.mmap(file.fileno(), 0) as memory:
            yield memory
