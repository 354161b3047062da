"""The file behind simulated GPUs: what is where, and opening or refusing it.

One header (magic, length of the specification, specification as JSON) and then, per GPU, one block:
fault flag, pid, counts, clock ring, activity ring, and two banks of work curves. Besides us the
fake NVML library of the tests (tests/nvmlfake) reads and writes it: what is changed here changes
there, in node.c.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from mmap import PAGESIZE, mmap
from pathlib import Path
from typing import Any

from perseusd.errors import GpuError
from perseusd.gpus.ring import Ring

MAX_GPUS = 1024
MAX_CLOCKS = 128
MAX_CURVES = 32
RING_SLOTS = 64

CLOCK_RECORD = "qqqq"  # effective_ns, clock_mhz (0: unlocked), limit_mhz (0: none), its reasons
ACTIVITY_RECORD = "qdqqd"  # start_ns, energy_j at start, kind, table generation, factor

_MAGIC = b"PERSGPU2"
_HEADER = struct.Struct("@8sQQ")  # magic, GPUs, length of the specification
_HEADER_SIZE = 2 * PAGESIZE
_FAULT_WORD = 0
_PID_WORD = 1
_GENERATION_WORD = 2
_WRITES_WORD = 3
_CLOCKS_OFFSET = 64
_ACTIVITIES_OFFSET = _CLOCKS_OFFSET + Ring.size(CLOCK_RECORD, RING_SLOTS)
_TABLES_OFFSET = _ACTIVITIES_OFFSET + Ring.size(ACTIVITY_RECORD, RING_SLOTS)
_CURVE_SIZE = 2 * MAX_CLOCKS * 8
_BANK_SIZE = MAX_CURVES * _CURVE_SIZE
_BLOCK_SIZE = -(-(_TABLES_OFFSET + 2 * _BANK_SIZE) // PAGESIZE) * PAGESIZE


@dataclass(frozen=True)
class SimulatedSpec:
    """What a simulated GPU is. Clocks ascend.

    power_limit_w: None where the measured curves already contain the cap.
    counter_tick_s: how often the energy counter moves. write_latency_s: how long a clock write
    holds the node's driver lock; settle_s: how long until it takes effect.
    """

    name: str
    supported_clocks_mhz: tuple[int, ...]
    blocking_power_w: float
    idle_power_w: float
    power_limit_w: float | None = None
    counter_tick_s: float = 0.05
    write_latency_s: float = 0.005
    settle_s: float = 0.001

    def __post_init__(self) -> None:
        clocks = self.supported_clocks_mhz
        if not 1 <= len(clocks) <= MAX_CLOCKS or list(clocks) != sorted(set(clocks)):
            raise GpuError(
                f"simulated GPU {self.name!r}: supported clocks must be 1 to {MAX_CLOCKS} "
                f"different ascending values, not {len(clocks)} starting {clocks[:3]}"
            )
        if self.counter_tick_s <= 0 or min(self.write_latency_s, self.settle_s) < 0:
            raise GpuError(f"simulated GPU {self.name!r}: negative times in its specification")


class GpuBlock:
    """One GPU's part of the mapped file."""

    def __init__(self, memory: mmap, words: memoryview, index: int) -> None:
        """words: the same mapping through `words_of`."""
        self._memory = memory
        self._words = words
        self.offset = _HEADER_SIZE + index * _BLOCK_SIZE
        self._first_word = self.offset // 8
        self.clocks = Ring(memory, words, self.offset + _CLOCKS_OFFSET, CLOCK_RECORD, RING_SLOTS)
        self.activities = Ring(
            memory, words, self.offset + _ACTIVITIES_OFFSET, ACTIVITY_RECORD, RING_SLOTS
        )

    @property
    def fault(self) -> int:
        """What clock writes do instead of working: a Fault."""
        return self._words[self._first_word + _FAULT_WORD]

    @fault.setter
    def fault(self, value: int) -> None:
        self._words[self._first_word + _FAULT_WORD] = value

    @property
    def pid(self) -> int:
        """Who opened the GPU last."""
        return self._words[self._first_word + _PID_WORD]

    @pid.setter
    def pid(self, value: int) -> None:
        self._words[self._first_word + _PID_WORD] = value

    @property
    def generation(self) -> int:
        """How often curves were loaded; its parity says which bank is in force."""
        return self._words[self._first_word + _GENERATION_WORD]

    @generation.setter
    def generation(self, value: int) -> None:
        self._words[self._first_word + _GENERATION_WORD] = value

    @property
    def writes(self) -> int:
        """How many clock writes it has had; to be raised under the node's write lock."""
        return self._words[self._first_word + _WRITES_WORD]

    @writes.setter
    def writes(self, value: int) -> None:
        self._words[self._first_word + _WRITES_WORD] = value

    def write_curve(self, generation: int, kind: int, values: Sequence[float]) -> None:
        """values: the times, then the energies."""
        offset = self._curve_offset(generation, kind)
        struct.pack_into(f"@{len(values)}d", self._memory, offset, *values)

    def read_curve(self, generation: int, kind: int, clocks: int) -> tuple[float, ...]:
        offset = self._curve_offset(generation, kind)
        return struct.unpack_from(f"@{2 * clocks}d", self._memory, offset)

    def _curve_offset(self, generation: int, kind: int) -> int:
        bank = self.offset + _TABLES_OFFSET + (generation % 2) * _BANK_SIZE
        return bank + kind * _CURVE_SIZE


def create_file(path: Path, spec: SimulatedSpec, count: int) -> tuple[mmap, Path]:
    """Lay out a new file beside `path`; the caller fills it in and renames it into place."""
    if not 1 <= count <= MAX_GPUS:
        raise GpuError(f"{count} simulated GPUs: the number must be 1 to {MAX_GPUS}")
    text = json.dumps(asdict(spec)).encode()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w+b") as file:
            os.truncate(file.fileno(), _HEADER_SIZE + count * _BLOCK_SIZE)
            memory = mmap(file.fileno(), 0)
    except OSError as error:
        raise GpuError(f"simulated GPUs: {path} cannot be created: {error.strerror}") from error
    _HEADER.pack_into(memory, 0, _MAGIC, count, len(text))
    memory[_HEADER.size : _HEADER.size + len(text)] = text
    return memory, temporary


def open_file(path: Path) -> tuple[mmap, SimulatedSpec, int]:
    """Map an existing file; GpuError if it is not one of ours, whole."""
    try:
        with path.open("r+b") as file:
            size = os.fstat(file.fileno()).st_size
            memory = mmap(file.fileno(), 0) if size >= _HEADER_SIZE else None
    except (OSError, ValueError) as error:
        raise GpuError(f"simulated GPUs: {path} cannot be opened: {error}") from error
    if memory is None:
        raise _foreign(path, "it is too small")
    try:
        spec, count = _read_header(memory, path)
        if size != _HEADER_SIZE + count * _BLOCK_SIZE:
            raise _foreign(path, f"its size does not fit {count} GPUs")
    except GpuError:
        memory.close()
        raise
    return memory, spec, count


def _read_header(memory: mmap, path: Path) -> tuple[SimulatedSpec, int]:
    magic, count, length = _HEADER.unpack_from(memory, 0)
    if magic != _MAGIC or not 1 <= count <= MAX_GPUS or length > _HEADER_SIZE - _HEADER.size:
        raise _foreign(path, "it does not begin as one")
    try:
        fields: dict[str, Any] = json.loads(memory[_HEADER.size : _HEADER.size + length])
        fields["supported_clocks_mhz"] = tuple(fields["supported_clocks_mhz"])
        return SimulatedSpec(**fields), count
    except (ValueError, TypeError, KeyError, GpuError) as error:
        raise _foreign(path, "its specification is damaged") from error


def _foreign(path: Path, why: str) -> GpuError:
    return GpuError(
        f"simulated GPUs: {path} is not a simulated-GPU file of this version ({why}); "
        "remove it, and the next start creates a new one"
    )
