"""Real GPUs through NVML: the only importer of pynvml.

Reading needs no privilege; locking a clock needs CAP_SYS_ADMIN. There is no getter for a lock, and
a successful call means installed, not obeyed: only the observed clock and its reasons tell.
pynvml's errors cannot be hashed and its handles compare by identity, so GPUs go by UUID and errors
by code.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pynvml

from perseusd.errors import GpuError
from perseusd.gpus.base import (
    ClockReason,
    GpuInfo,
    GpuLostError,
    GpuNotSupportedError,
    GpuPermissionError,
    require_supported,
)

_FIELD_VALUE_NAMES = (
    "dVal",
    "uiVal",
    "ulVal",
    "ullVal",
    "sllVal",
    "siVal",
    "usVal",
)  # by valueType

_MISSING = (
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    pynvml.NVML_ERROR_DEPRECATED,
)
_LOST = (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED)
_NO_DRIVER = (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
_OUTDATED = (AttributeError, getattr(pynvml, "NVMLLibraryMismatchError", AttributeError))
"""How an older pynvml says that it does not know a function, and a newer one that the driver does
not."""


class _CodeError(Exception):
    """An NVML return code other than success."""

    def __init__(self, code: int) -> None:
        self.code = code


def _call(function: str, *arguments: Any) -> Any:
    """pynvml's function of that name; _CodeError says which code it returned."""
    try:
        return getattr(pynvml, function)(*arguments)
    except pynvml.NVMLError as error:
        raise _CodeError(error.value) from None
    except _OUTDATED:
        raise _CodeError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND) from None


def _explained(code: int, where: str, function: str) -> GpuError:
    """The error to raise for an NVML code, with what to do about it."""
    text = f"{where}: {function}: {pynvml.NVMLError(code)} (NVML error {code})"
    if code == pynvml.NVML_ERROR_NO_PERMISSION:
        return GpuPermissionError(f"{text}; it needs root with CAP_SYS_ADMIN")
    if code in _LOST:
        return GpuLostError(f"{text}; reset it with nvidia-smi --gpu-reset, or reboot")
    if code in _MISSING:
        return GpuNotSupportedError(f"{text}; this GPU or its driver cannot do it")
    if code in _NO_DRIVER:
        return GpuError(
            f"{text}; install or load the NVIDIA driver, or simulate GPUs "
            "(`perseusd run --simulate N`)"
        )
    if code == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return GpuError(f"{text}; the driver was upgraded underneath: reload it, or reboot")
    return GpuError(f"{text}; see the kernel log for what the driver reports")


class NvmlGpu:
    """One real GPU. Made by NvmlNode; of no use after the node was closed."""

    def __init__(self, index: int) -> None:
        self._where = f"GPU {index}"
        self._index = index
        self._handle = self._ask("nvmlDeviceGetHandleByIndex", index)
        self._missing: set[str] = set()
        uuid = str(self._get("nvmlDeviceGetUUID"))
        self._where = f"GPU {index} ({uuid})"
        self._info = GpuInfo(
            uuid=uuid,
            name=str(self._get("nvmlDeviceGetName")),
            index=index,
            supported_clocks_mhz=self._supported_clocks(),
            mig_enabled=self._mig_enabled(),
            emulated=False,
        )

    @property
    def info(self) -> GpuInfo:
        return self._info

    def energy_j(self) -> float:
        return float(self._get("nvmlDeviceGetTotalEnergyConsumption")) / 1000

    def power_w(self) -> float:
        """Instant power; the driver's average where that is all it offers."""
        if "instant power" not in self._missing:
            instant_mw = self._instant_power_mw()
            if instant_mw is not None:
                return instant_mw / 1000
            self._missing.add("instant power")
        return float(self._get("nvmlDeviceGetPowerUsage")) / 1000

    def clock_mhz(self) -> int:
        return int(self._get("nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_SM))

    def reasons(self) -> ClockReason:
        names = (
            "nvmlDeviceGetCurrentClocksEventReasons",
            "nvmlDeviceGetCurrentClocksThrottleReasons",
        )
        return ClockReason(int(self._get_newest(names)))

    def temperature_c(self) -> float:
        names = ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature")
        return float(self._get_newest(names, pynvml.NVML_TEMPERATURE_GPU))

    def process_ids(self) -> Sequence[int]:
        processes = list(self._get("nvmlDeviceGetComputeRunningProcesses"))
        with contextlib.suppress(GpuNotSupportedError):  # clients of the Multi-Process Service
            processes += self._get("nvmlDeviceGetMPSComputeRunningProcesses")
        return tuple(dict.fromkeys(int(process.pid) for process in processes))

    def lock_clock(self, clock_mhz: int) -> None:
        require_supported(self._info, clock_mhz)
        self._get("nvmlDeviceSetGpuLockedClocks", clock_mhz, clock_mhz)

    def reset_clock(self) -> None:
        self._get("nvmlDeviceResetGpuLockedClocks")

    def _instant_power_mw(self) -> float | None:
        """None where the driver does not know this field: its own code is in the value."""
        try:
            value = _call(
                "nvmlDeviceGetFieldValues", self._handle, [pynvml.NVML_FI_DEV_POWER_INSTANT]
            )[0]
            if value.nvmlReturn != pynvml.NVML_SUCCESS:
                raise _CodeError(value.nvmlReturn)
        except _CodeError as error:
            if error.code in (*_MISSING, pynvml.NVML_ERROR_INVALID_ARGUMENT):
                return None
            raise _explained(error.code, self._where, "nvmlDeviceGetFieldValues") from None
        return float(getattr(value.value, _FIELD_VALUE_NAMES[value.valueType]))

    def _supported_clocks(self) -> tuple[int, ...]:
        """Graphics clocks of the highest memory clock; none where it has none to choose (vGPU)."""
        try:
            memory_clocks = self._get("nvmlDeviceGetSupportedMemoryClocks")
            if not memory_clocks:
                return ()
            clocks = self._get("nvmlDeviceGetSupportedGraphicsClocks", max(memory_clocks))
        except GpuNotSupportedError:
            return ()
        return tuple(sorted({int(clock) for clock in clocks}))

    def _mig_enabled(self) -> bool:
        try:
            current, _pending = self._get("nvmlDeviceGetMigMode")
        except GpuNotSupportedError:
            return False
        return bool(current == pynvml.NVML_DEVICE_MIG_ENABLE)

    def _get_newest(self, functions: tuple[str, str], *arguments: Any) -> Any:
        """By the first function, or where it does not exist by its deprecated predecessor."""
        newer, older = functions
        if newer not in self._missing:
            try:
                return self._get(newer, *arguments)
            except GpuNotSupportedError:
                self._missing.add(newer)
        return self._get(older, *arguments)

    def _get(self, function: str, *arguments: Any) -> Any:
        return self._ask(function, self._handle, *arguments)

    def _ask(self, function: str, *arguments: Any) -> Any:
        try:
            return _call(function, *arguments)
        except _CodeError as error:
            raise _explained(error.code, self._where, function) from None


class NvmlNode:
    """All real GPUs of this node. Holds the driver open until closed.

    GPUs are opened on a thread each, so that one that hangs or fails keeps no other away.
    """

    def __init__(self, wait_s: float) -> None:
        """wait_s: a GPU that takes longer to open is unavailable until `look_again` has it."""
        try:
            _call("nvmlInit")
        except _CodeError as error:
            raise _explained(error.code, "NVIDIA driver", "nvmlInit") from None
        self._closed = False
        self._gpus: dict[int, NvmlGpu] = {}
        self._unavailable: dict[int, str] = {}
        self._opening: dict[int, _Opening] = {}
        self._ended = threading.Event()  # some opening, since they were collected last
        try:
            count = _call("nvmlDeviceGetCount")
        except _CodeError as error:
            self.close()
            raise _explained(error.code, "NVIDIA driver", "nvmlDeviceGetCount") from None
        self._opening = {index: _Opening(index, self._ended) for index in range(count)}
        deadline_s = time.monotonic() + wait_s
        self._collect()
        while self._opening and (left_s := deadline_s - time.monotonic()) > 0:
            self.await_some(left_s)

    @property
    def gpus(self) -> Sequence[NvmlGpu]:
        return tuple(gpu for _, gpu in sorted(self._gpus.items()))

    @property
    def unavailable(self) -> Mapping[int, str]:
        return self._unavailable

    @property
    def hanging(self) -> bool:
        return any(opening.found is None for opening in self._opening.values())

    def await_some(self, patience_s: float) -> Sequence[NvmlGpu]:
        self._ended.wait(patience_s)
        return self._collect()

    def look_again(self) -> Sequence[NvmlGpu]:
        """Those that have been opened since; those that failed are begun anew."""
        come = self._collect()
        for index in self._unavailable:
            if index not in self._opening:
                self._opening[index] = _Opening(index, self._ended)
        return come

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            try:
                _call("nvmlShutdown")
            except _CodeError as error:
                raise _explained(error.code, "NVIDIA driver", "nvmlShutdown") from None

    def _collect(self) -> Sequence[NvmlGpu]:
        """Take what the threads have found so far; the GPUs that are new."""
        self._ended.clear()  # first: what ends meanwhile is looked at now or told of anew
        come = []
        for index, opening in tuple(self._opening.items()):
            if opening.found is None:
                self._unavailable[index] = f"GPU {index} does not answer: a driver call hangs"
                continue
            del self._opening[index]
            if isinstance(opening.found, NvmlGpu):
                come.append(opening.found)
                self._gpus[index] = opening.found
                self._unavailable.pop(index, None)
            else:
                self._unavailable[index] = str(opening.found)
        return come


class _Opening(threading.Thread):
    """Opens one GPU; found: the GPU, or why it cannot be opened; None until then."""

    def __init__(self, index: int, ended: threading.Event) -> None:
        super().__init__(name=f"open-gpu-{index}", daemon=True)
        self.index = index
        self._ended = ended
        self.found: NvmlGpu | Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.found = NvmlGpu(self.index)
        except Exception as error:  # noqa: BLE001 - whatever it is, only this GPU is unavailable
            self.found = error
        self._ended.set()
