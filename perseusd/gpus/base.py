"""What perseusd needs of a GPU. Units are in the names; every read is one driver call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import Protocol

from perseusd.errors import GpuError


class ClockReason(IntFlag):
    """Why a GPU runs below its highest clock: NVML's clocks-event-reason bits."""

    NONE = 0
    IDLE = 0x1
    APPLICATIONS_CLOCKS = 0x2
    SW_POWER_CAP = 0x4
    HW_SLOWDOWN = 0x8
    SYNC_BOOST = 0x10
    SW_THERMAL = 0x20
    HW_THERMAL = 0x40
    HW_POWER_BRAKE = 0x80
    DISPLAY = 0x100


@dataclass(frozen=True)
class GpuInfo:
    """What does not change while the driver is loaded. Clocks ascend."""

    uuid: str
    name: str
    index: int
    supported_clocks_mhz: tuple[int, ...]
    mig_enabled: bool
    emulated: bool


class GpuLostError(GpuError):
    """The GPU fell off the bus or needs a reset."""


class GpuPermissionError(GpuError):
    """The driver refuses this caller."""


class GpuNotSupportedError(GpuError):
    """This GPU or driver cannot do it."""


def require_supported(info: GpuInfo, clock_mhz: int) -> None:
    """GpuError naming the nearest supported clock if the GPU does not support this one."""
    clocks = info.supported_clocks_mhz
    if clock_mhz in clocks:
        return
    where = f"GPU {info.index} ({info.uuid})"
    if not clocks:
        raise GpuNotSupportedError(f"{where} supports no clock that could be locked")
    nearest = min(clocks, key=lambda supported: abs(supported - clock_mhz))
    raise GpuError(
        f"{where} does not support {clock_mhz} MHz; the nearest clock it supports is {nearest} MHz"
    )


class Gpu(Protocol):
    """One GPU. Every method raises GpuError (or a subclass) when the driver fails."""

    @property
    def info(self) -> GpuInfo: ...

    def energy_j(self) -> float:
        """The total-energy counter now."""

    def power_w(self) -> float: ...

    def clock_mhz(self) -> int:
        """The SM clock as observed, whatever was requested."""

    def reasons(self) -> ClockReason: ...

    def temperature_c(self) -> float: ...

    def process_ids(self) -> Sequence[int]:
        """Host process ids that have a compute context on this GPU."""

    def lock_clock(self, clock_mhz: int) -> None:
        """Lock the SM clock to one supported value. Takes milliseconds. Needs privilege."""

    def reset_clock(self) -> None:
        """Undo any lock: full clock. Takes milliseconds. Needs privilege."""


class GpuNode(Protocol):
    """All GPUs of this node, in driver order."""

    @property
    def gpus(self) -> Sequence[Gpu]: ...

    @property
    def unavailable(self) -> Mapping[int, str]:
        """Why a GPU is not among them, by its index."""

    @property
    def hanging(self) -> bool:
        """Whether opening a GPU has not come back yet: then the driver cannot be let go of."""

    def await_some(self, patience_s: float) -> Sequence[Gpu]:
        """GPUs that have become available since; waits at most so long for one whose opening ends,
        well or not."""

    def look_again(self) -> Sequence[Gpu]:
        """GPUs that have become available since; does not wait, so ask again later."""

    def close(self) -> None:
        """Let go of the driver, so that a GPU can be reset."""
