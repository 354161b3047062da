"""The stand-in for the driver's library: true to nvml.h, and to the GPUs it is a face of."""

from __future__ import annotations

import importlib.metadata
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from nvml_build import SOURCE, STRICT
from nvml_faults import (
    ANY_FUNCTION,
    ANY_GPU,
    Fault,
    GpuControls,
    gpu_controls,
    require_admin,
    set_gpu,
)

from perseusd.gpus.base import ClockReason
from perseusd.gpus.physics import WorkCurve
from perseusd.gpus.simulated import SimulatedNode

Run = Callable[..., Any]
Maker = Callable[..., SimulatedNode]


def test_it_is_what_the_header_says() -> None:
    """Compiled with NVIDIA's own nvml.h in its types' place: every function's type, every constant
    and the size and offsets of every struct are the header's."""
    files = importlib.metadata.files("nvidia-nvml-dev") or []
    (header,) = (file.locate() for file in files if file.name == "nvml.h")
    options = [f'-DNVML_HEADER="{header}"', "-DNVML_NO_UNVERSIONED_FUNC_DEFS"]
    check = ["cc", "-fsyntax-only", *STRICT, *options, SOURCE / "nvmlfake.c"]
    subprocess.run(check, check=True)
    wrong = f'#include "{header}"\nnvmlReturn_t nvmlDeviceResetGpuLockedClocks(int device);\n'
    command = ["cc", "-fsyntax-only", "-x", "c", "-"]  # and it does look
    found = subprocess.run(command, input=wrong, text=True, capture_output=True, check=False)
    assert "conflicting types" in found.stderr


_ENERGIES = """
import ctypes, json, sys
library = ctypes.CDLL("libnvidia-ml.so.1")
library.nvmlInit_v2()
library.nvmlfake_energy_j.restype = ctypes.c_double
stamps = json.loads(input())
print(json.dumps([library.nvmlfake_energy_j(0, ctypes.c_longlong(t)) for t in stamps]))
"""


@pytest.mark.parametrize("power_limit_w", [None, 200.0])
def test_its_physics_are_those_of_the_emulation(
    make_node: Maker,
    curve: WorkCurve,
    environment: dict[str, str],
    power_limit_w: float | None,
) -> None:
    """Energy at 200 moments of a GPU that works, waits, is locked and is kept below its lock:
    the same in C as in Python."""
    node = make_node(power_limit_w=power_limit_w)
    gpu = node.gpus[0]
    chance = random.Random(7)
    clocks = gpu.info.supported_clocks_mhz
    engine = gpu.engine()
    engine.load([curve, WorkCurve(curve.time_s[::-1], curve.energy_j)])
    begin_ns = time.monotonic_ns()
    for _ in range(12):
        engine.submit(chance.randrange(2), time.monotonic_ns(), chance.uniform(0.01, 0.05))
        gpu.lock_clock(chance.choice(clocks))
        gpu.limit_clock(chance.choice([*clocks, None]))
        while engine.end_ns() is None:
            time.sleep(0.0005)
        if chance.random() < 0.5:
            gpu.reset_clock()
    end_ns = time.monotonic_ns()
    stamps = [chance.randrange(begin_ns, end_ns) for _ in range(200)]
    expected = [gpu.true_energy_j(stamp_ns) for stamp_ns in stamps]
    names = environment | {"NVMLFAKE_NODE": str(node.path)}
    read = subprocess.run(
        [sys.executable, "-c", _ENERGIES],
        env=names,
        input=str(stamps),
        capture_output=True,
        text=True,
        check=True,
    )
    found = [float(value) for value in read.stdout.strip(" []\n").split(",")]
    assert found == pytest.approx(expected, rel=1e-9)
    assert len({round(value, 6) for value in found}) > 100


def test_a_lock_through_nvml_slows_the_emulated_work(
    run: Run, node: SimulatedNode, curve: WorkCurve
) -> None:
    """One computation at full clock and one at half: by the library's word the GPU works at that
    clock and power, and the second takes twice as long."""
    gpu = node.gpus[0]
    engine = gpu.engine()
    engine.load([curve])
    engine.submit(0, time.monotonic_ns(), factor=500)
    before_ns = engine.predicted_end_ns()
    answer = run(
        """
        gpu = open_gpus().gpus[0]
        answer = [gpu.clock_mhz(), gpu.power_w(), list(gpu.process_ids()), int(gpu.reasons())]
        gpu.lock_clock(705)
        answer += [gpu.clock_mhz(), gpu.power_w()]
        """
    )
    now_ns = time.monotonic_ns()
    after_ns = engine.predicted_end_ns()
    engine.close()
    assert answer[:2] == [1410, pytest.approx(300.0, abs=0.01)]
    assert answer[2:4] == [[os.getpid()], 0]
    assert answer[4:] == [705, pytest.approx(200.0, abs=0.01)]
    assert before_ns is not None
    assert after_ns is not None
    assert after_ns - now_ns == pytest.approx(2 * (before_ns - now_ns), rel=0.1)


def test_power_and_heat_go_below_the_lock(run: Run, node: SimulatedNode) -> None:
    """A lock is installed and not obeyed, and the reasons say why; lifted, it is obeyed."""
    gpu = node.gpus[0]
    read = """
        gpu = open_gpus().gpus[0]
        gpu.lock_clock(1200)
        answer = [gpu.clock_mhz(), int(gpu.reasons())]
        """
    gpu.limit_clock(900, ClockReason.SW_THERMAL)
    assert run(read) == [900, ClockReason.SW_THERMAL | ClockReason.IDLE]
    assert (gpu.clock_mhz(), gpu.locked_mhz()) == (900, 1200)
    assert gpu.reasons() == ClockReason.SW_THERMAL | ClockReason.IDLE
    gpu.limit_clock(1305, ClockReason.SW_THERMAL)  # above the lock: nothing is limited
    assert run(read) == [1200, ClockReason.IDLE]
    gpu.limit_clock(None)
    assert run(read) == [1200, ClockReason.IDLE]
    assert gpu.clock_writes() == 3


def test_writes_wait_for_each_other(run: Run, make_node: Maker, environment: Any) -> None:
    """Two GPUs written at once take two latencies, as the driver's lock makes them."""
    node = make_node(2, write_latency_s=0.1)
    environment["NVMLFAKE_NODE"] = str(node.path)
    took_s = run(
        """
        import threading, time
        gpus = open_gpus().gpus
        threads = [threading.Thread(target=gpu.lock_clock, args=(1005,)) for gpu in gpus]
        begin = time.monotonic()
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        answer = time.monotonic() - begin
        """
    )
    assert 0.2 <= took_s < 1
    assert [gpu.locked_mhz() for gpu in node.gpus] == [1005, 1005]


def test_without_persistence_mode_the_last_user_takes_locks_along(
    run: Run, node: SimulatedNode
) -> None:
    """A lock of a GPU without persistence mode is gone once nobody uses the driver, and not
    before; with it (the default) it outlives everybody."""
    set_gpu(node.path, 0, GpuControls(persistence_off=True))
    answer = run(
        """
        import subprocess, sys
        node = open_gpus()
        other = "from perseusd.gpus import open_gpus; n = open_gpus(); "
        other += "[g.lock_clock(1005) for g in n.gpus]; n.close()"
        subprocess.run([sys.executable, "-c", other], check=True)
        answer = [gpu.clock_mhz() for gpu in node.gpus]
        node.close()
        answer += [gpu.clock_mhz() for gpu in open_gpus().gpus]
        """
    )
    assert answer == [1005, 1005, 1410, 1005]


def test_writing_without_the_capability_is_refused(run: Run, node: SimulatedNode) -> None:
    """Where the driver wants CAP_SYS_ADMIN, a process that has dropped it may read only."""
    require_admin(node.path)
    answer = run(
        """
        import ctypes
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        nothing = (ctypes.c_uint32 * 6)()
        assert ctypes.CDLL(None).capset(header, nothing) == 0
        gpu = open_gpus().gpus[0]
        answer = [error(gpu.lock_clock, 1005)[0], error(gpu.reset_clock)[0], gpu.clock_mhz()]
        """
    )
    assert answer == ["GpuPermissionError", "GpuPermissionError", 1410]
    counted = gpu_controls(node.path, 0)
    assert counted.set_calls == 2
    assert counted.calls > 2


def test_one_lost_gpu_keeps_nobody_from_the_driver(run: Run, node: SimulatedNode) -> None:
    """As with the real library: the driver opens, counts its GPUs and closes, and the other GPU is
    there. A fault of the driver's own, which is no GPU's, is named with ANY_GPU."""
    lost = Fault(ANY_FUNCTION, 0, 15)
    program = "n = open_gpus(); answer = [gpu.info.index for gpu in n.gpus]; n.close()"
    assert run(program, lost) == [1]
    for function in ("nvmlInitWithFlags", "nvmlDeviceGetCount_v2"):
        program = "answer = error(open_gpus)[0]"
        assert run(program, lost, Fault(function, ANY_GPU, 999)) == "GpuError"


def test_faults_by_function_gpu_and_time(run: Run, environment: dict[str, str]) -> None:
    """A lost GPU fails every call, a slow one takes its time, a fault elsewhere hurts nobody."""
    environment["PYTHONPATH"] = str(SOURCE)
    answer = run(
        """
        import time
        from pathlib import Path
        from nvml_faults import ANY_FUNCTION, Fault, set_faults
        one, two = open_gpus().gpus
        set_faults(
            Path(os.environ["NVMLFAKE_NODE"]),
            Fault(ANY_FUNCTION, 0, 15),
            Fault("nvmlDeviceGetPowerUsage", 1, 999, pid=1),
            Fault("nvmlDeviceGetClockInfo", 1, delay_s=0.2),
            Fault("nvmlDeviceResetGpuLockedClocks", 1, 10, delay_s=0.1),
        )
        begin = time.monotonic()
        answer = [error(one.clock_mhz)[0], error(one.reset_clock)[0], two.power_w()]
        quick = time.monotonic()
        answer += [two.clock_mhz(), error(two.reset_clock)[0]]
        answer += [quick - begin, time.monotonic() - quick]
        """
    )
    assert answer[:5] == ["GpuLostError", "GpuLostError", 55.0, 1410, "GpuError"]
    assert answer[5] < 0.1
    assert 0.3 <= answer[6] < 1
