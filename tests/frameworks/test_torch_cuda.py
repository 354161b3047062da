"""What the hooks use of torch.cuda is there, and what they say to the driver arrives."""

from __future__ import annotations

import ctypes
import inspect
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
import torch.cuda
from perseus_hooks.adapters import torch_cuda

from tests.hooks.stand_in_cuda import Event, StandIn

DRIVER = """
#include <pthread.h>
static int modes[16], threads;
int cuThreadExchangeStreamCaptureMode(int *mode) {
    int asked = *mode;
    modes[threads++ & 15] = asked;
    *mode = 0;
    return asked == 2 ? 0 : 1;
}
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
    *flags = 7;
    *active = device == 3;
    return device > 7;
}
int calls(void) { return threads; }
int mode(int call) { return modes[call]; }
"""
"""It takes the relaxed mode alone, as CUDA's enumeration numbers it."""


@pytest.mark.parametrize(
    "name",
    [
        "is_initialized",
        "device_count",
        "current_device",
        "set_device",
        "set_stream",
        "is_current_stream_capturing",
    ],
)
def test_the_stand_in_has_torchs_functions(name: str) -> None:
    """Those that are called with arguments have them by the same names."""
    real = inspect.signature(getattr(torch.cuda, name)).parameters
    ours = inspect.signature(getattr(StandIn, name)).parameters
    assert list(real) == list(ours)[1:]


def test_the_stand_in_has_torchs_events() -> None:
    """Made for timing, recorded on a stream or the current one, asked, and held against others."""
    made = inspect.signature(torch.cuda.Event.__new__).parameters
    assert "enable_timing" in made
    for name in ("record", "query", "elapsed_time"):
        real = inspect.signature(getattr(torch.cuda.Event, name)).parameters
        ours = inspect.signature(getattr(Event, name)).parameters
        assert list(real) == list(ours)
    assert callable(torch.cuda.Stream)
    assert callable(torch.cuda.device)


def test_without_cuda_there_are_no_devices() -> None:
    """PyTorch is here, and CUDA has not come up."""
    assert torch_cuda.cuda_in_use() is None


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    source, library = tmp_path / "driver.c", tmp_path / "libcuda.so.1"
    source.write_text(DRIVER)
    subprocess.run([str(shutil.which("cc")), "-shared", "-fPIC", "-o", library, source], check=True)
    monkeypatch.setattr(torch_cuda, "DRIVER", str(library))
    return ctypes.CDLL(str(library))


def test_the_thread_that_asks_takes_no_part_in_captures(driver: ctypes.CDLL) -> None:
    """Else its query would end, with an error, a capture that the training has under way."""
    cuda = StandIn()
    device = torch_cuda.CudaDevices(cuda).device(3)
    thread = threading.Thread(target=device.attend, name="asking")
    thread.start()
    thread.join()
    cuda.end()
    assert driver.calls() == 1
    assert driver.mode(0) == 2
    assert cuda.devices_set == [("asking", 3)]


def test_the_driver_is_asked_where_contexts_are(driver: ctypes.CDLL) -> None:
    """What it does not know, or where there is none to ask, counts as if there were one."""
    assert [torch_cuda.has_context(index) for index in (0, 3, 8)] == [False, True, True]
    with pytest.MonkeyPatch.context() as without:
        without.setattr(torch_cuda, "DRIVER", "/nowhere/libcuda.so.1")
        assert torch_cuda.has_context(0)


def test_a_driver_that_refuses_is_an_error(
    driver: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather no times than a capture of the training that fails because of us."""
    monkeypatch.setattr(torch_cuda, "_RELAXED", 7)
    cuda = StandIn()
    with pytest.raises(OSError, match="CUDA error 1"):
        torch_cuda.CudaDevices(cuda).device(0).attend()
    cuda.end()
