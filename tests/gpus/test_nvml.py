"""Real NVML through unmodified pynvml, on a stand-in for the driver's library."""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml
import pytest
from nvml_faults import ANY_GPU, HANG, GpuControls, set_faults, set_gpu

from perseusd.clock.client import ClockClient
from perseusd.clock.protocol import ResultCode
from perseusd.gpus.simulated import SPECS, SimulatedNode

# The call for newer drivers; the oldest nvidia-ml-py that is allowed has the old one only.
TEMPERATURE_CALL = "nvmlDeviceGetTemperatureV"
if not hasattr(pynvml, TEMPERATURE_CALL):
    TEMPERATURE_CALL = "nvmlDeviceGetTemperature"

UUIDS = [f"GPU-sim00000-0000-0000-0000-{i:012d}" for i in range(2)]
IDLE_W = SPECS["a100-sxm"].idle_power_w
Run = Callable[..., Any]


def test_what_does_not_change(run: Run) -> None:
    """UUID, name, index, ascending clocks of the highest memory clock, MIG."""
    answer = run(
        """
        node = open_gpus()
        answer = [[g.info.uuid, g.info.name, g.info.index, g.info.supported_clocks_mhz,
                   g.info.mig_enabled, g.info.emulated] for g in node.gpus]
        node.close()
        node.close()
        """
    )
    clocks = list(range(210, 1411, 15))
    assert answer == [
        [UUIDS[i], "NVIDIA A100-SXM4-80GB", i, clocks, False, False] for i in range(2)
    ]


def test_readings_have_the_units_in_their_names(run: Run, node: SimulatedNode) -> None:
    """Millijoules and milliwatts become joules and watts; everything else as the driver says, and
    by the newer functions where there are older ones too."""
    set_gpu(node.path, 0, GpuControls(processes=(4242, 4343)))
    before_j = node.gpus[0].true_energy_j()
    old = ("nvmlDeviceGetPowerUsage", "nvmlDeviceGetCurrentClocksThrottleReasons")
    energy_j, *answer = run(
        """
        gpu = open_gpus().gpus[0]
        answer = [gpu.energy_j(), gpu.power_w(), gpu.clock_mhz(), int(gpu.reasons()),
                  gpu.temperature_c(), list(gpu.process_ids())]
        """,
        *((function, 0, 999) for function in old),
    )
    assert before_j - 55 <= energy_j <= node.gpus[0].true_energy_j()
    assert answer == [IDLE_W, 1410, 1, 35.0, [4242, 4343]]


@pytest.mark.parametrize("code", [3, 13])
def test_older_drivers_are_read_too(run: Run, code: int) -> None:
    """Without the new functions and the instant-power field their predecessors are used."""
    newer = (
        "field",
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetTemperatureV",
        "nvmlDeviceGetMigMode",
    )
    answer = run(
        """
        gpu = open_gpus().gpus[0]
        answer = [[gpu.power_w(), int(gpu.reasons()), gpu.temperature_c()] for _ in range(2)]
        answer.append(gpu.info.mig_enabled)
        """,
        *((function, 0, code) for function in newer),
    )
    assert answer == [[IDLE_W, 1, 35.0], [IDLE_W, 1, 35.0], False]


def test_lock_and_reset(run: Run) -> None:
    """A lock is seen in the observed clock of that GPU only; reset undoes it."""
    answer = run(
        """
        one, other = open_gpus().gpus
        one.lock_clock(1005)
        answer = [one.clock_mhz(), other.clock_mhz()]
        one.reset_clock()
        answer.append(one.clock_mhz())
        answer.append(error(one.lock_clock, 1006))
        """
    )
    assert answer[:3] == [1005, 1410, 1410]
    assert answer[3][0] == "GpuError"
    assert "1006 MHz" in answer[3][1]
    assert "1005 MHz" in answer[3][1]


@pytest.mark.parametrize(
    ("code", "kind", "fix"),
    [
        (4, "GpuPermissionError", "CAP_SYS_ADMIN"),
        (15, "GpuLostError", "gpu-reset"),
        (16, "GpuLostError", "gpu-reset"),
        (3, "GpuNotSupportedError", "cannot do it"),
        (18, "GpuError", "reload it"),
        (10, "GpuError", "kernel log"),
        (999, "GpuError", "kernel log"),
        (777, "GpuError", "777"),
    ],
)
def test_errors_are_told_apart_and_named(run: Run, code: int, kind: str, fix: str) -> None:
    """Each error code becomes the error of its kind, naming GPU, call and fix."""
    calls = {
        "nvmlDeviceSetGpuLockedClocks": "lock_clock, 1005",
        "nvmlDeviceResetGpuLockedClocks": "reset_clock",
        "nvmlDeviceGetTotalEnergyConsumption": "energy_j",
        "nvmlDeviceGetClockInfo": "clock_mhz",
        "nvmlDeviceGetComputeRunningProcesses_v3": "process_ids",
    }
    methods = ", ".join(f"error(gpu.{call})" for call in calls.values())
    program = f"gpu = open_gpus().gpus[1]\nanswer = [{methods}]"
    answer = run(program, *((function, 1, code) for function in calls))
    for (name, text), function in zip(answer, calls, strict=True):
        assert name == kind
        assert f"GPU 1 ({UUIDS[1]})" in text
        assert function.removesuffix("_v3") in text
        assert fix in text


def test_lost_gpu_is_an_error_of_power_and_reasons_too(run: Run) -> None:
    """Where there are fallbacks a lost GPU is still a lost GPU, not an old driver."""
    functions = ("field", "nvmlDeviceGetCurrentClocksEventReasons", TEMPERATURE_CALL)
    answer = run(
        """
        gpu = open_gpus().gpus[0]
        answer = [error(gpu.power_w)[0], error(gpu.reasons)[0], error(gpu.temperature_c)[0]]
        """,
        *((function, 0, 15) for function in functions),
    )
    assert answer == ["GpuLostError"] * 3


def test_gpu_lost_at_the_start_does_not_hide_the_others(run: Run) -> None:
    """The other GPU keeps its index; why one is missing is kept."""
    answer = run(
        """
        node = open_gpus()
        answer = [[gpu.info.index for gpu in node.gpus], list(node.unavailable.items())]
        """,
        ("nvmlDeviceGetHandleByIndex_v2", 0, 15),
    )
    assert answer[0] == [1]
    ((index, why),) = answer[1]
    assert index == 0
    assert "GPU 0" in why


def test_gpu_without_clocks_is_read_but_not_locked(run: Run, node: SimulatedNode) -> None:
    """Where no clocks are listed (vGPU) there are none, and a lock is not supported."""
    set_gpu(node.path, 0, GpuControls(vgpu=True))
    answer = run(
        """
        gpu = open_gpus().gpus[0]
        answer = [gpu.info.supported_clocks_mhz, error(gpu.lock_clock, 1005)[0],
                  error(gpu.reset_clock)[0], gpu.power_w()]
        """
    )
    assert answer == [[], *["GpuNotSupportedError"] * 2, IDLE_W]


def test_mig_is_seen(run: Run, node: SimulatedNode) -> None:
    """A GPU divided by MIG says so."""
    set_gpu(node.path, 0, GpuControls(mig=True))
    assert run("answer = [g.info.mig_enabled for g in open_gpus().gpus]") == [True, False]


def test_no_driver_is_said_with_the_fix(run: Run, environment: dict[str, str]) -> None:
    """Driver not loaded, or no library at all: an error with what to do, no traceback."""
    text = run("answer = error(open_gpus)", ("nvmlInitWithFlags", ANY_GPU, 9))[1]
    assert "install or load the NVIDIA driver" in text
    environment["LD_LIBRARY_PATH"] = "/nonexistent"
    assert "NVIDIA driver" in run("answer = error(open_gpus)")[1]


def test_closed_node_has_let_go_of_the_driver(run: Run) -> None:
    """After close the library is shut down, so reading is an error, and a new node opens again."""
    answer = run(
        """
        node = open_gpus()
        node.close()
        answer = [error(node.gpus[0].power_w)[0], open_gpus().gpus[0].power_w()]
        """
    )
    assert answer == ["GpuError", IDLE_W]


def intend(folder: Path, uuids: list[str]) -> Path:
    """The file of a clock process that died while these might be locked."""
    intent = folder / "clock-intent.json"
    intent.write_text(json.dumps({"version": 1, "may_be_locked": uuids}))
    return intent


def locks(node: SimulatedNode) -> list[int | None]:
    return [gpu.locked_mhz() for gpu in node.gpus]


def test_clock_process_on_nvml_restores_after_a_crash(
    environment: dict[str, str], node: SimulatedNode, tmp_path: Path
) -> None:
    """perseusd-clock on the driver's library: after a crash its next start resets what the intent
    on disk names, and that GPU alone."""
    for gpu in node.gpus:
        gpu.lock_clock(1005)
    intent = intend(tmp_path, UUIDS[:1])
    command = [sys.executable, "-m", "perseusd.clock", "--reset", "--state-dir", str(tmp_path)]
    assert subprocess.run(command, env=environment, check=False, timeout=30).returncode == 0
    assert locks(node) == [None, 1005]
    assert [gpu.clock_writes() for gpu in node.gpus] == [2, 1]
    assert json.loads(intent.read_text())["may_be_locked"] == []


def test_a_reset_that_hangs_holds_up_no_other_gpu(
    environment: dict[str, str], node: SimulatedNode, tmp_path: Path
) -> None:
    """One GPU's reset never returns: the other is reset, the process ends, and says which is left;
    once the driver answers again the next start resets that one too."""
    for gpu in node.gpus:
        gpu.lock_clock(1005)
    intent = intend(tmp_path, UUIDS)
    set_faults(node.path, ("nvmlDeviceResetGpuLockedClocks", 0, HANG))
    command = [sys.executable, "-m", "perseusd.clock", "--reset", "--state-dir", str(tmp_path)]
    options: dict[str, Any] = {"env": environment, "check": False, "timeout": 30, "text": True}
    hung = subprocess.run(command, stderr=subprocess.PIPE, **options)
    assert hung.returncode == 1
    assert f"({UUIDS[0]}) may still be locked" in hung.stderr
    assert locks(node) == [1005, None]
    assert json.loads(intent.read_text())["may_be_locked"] == UUIDS[:1]
    set_faults(node.path)
    assert subprocess.run(command, **options).returncode == 0
    assert locks(node) == [None, None]
    assert json.loads(intent.read_text())["may_be_locked"] == []


def test_a_lock_that_hangs_holds_up_no_other_gpu(
    environment: dict[str, str], node: SimulatedNode, tmp_path: Path
) -> None:
    """While one GPU's lock hangs the other is locked; once it answers, hanging up resets both."""
    set_faults(node.path, ("nvmlDeviceSetGpuLockedClocks", 0, HANG))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "perseusd.clock", "--fd", str(theirs.fileno())]
    command += ["--state-dir", str(tmp_path), "--heartbeat-timeout", "60"]
    with subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()]) as clock:
        theirs.close()
        client = ClockClient(ours)
        try:
            hung, other = client.lock(0, 1005), client.lock(1, 1005)
            assert _next_result(client) == (other, ResultCode.OK)
            assert locks(node) == [None, 1005]
            set_faults(node.path)
            assert _next_result(client) == (hung, ResultCode.OK)
            assert locks(node) == [1005, 1005]
            client.close()
            assert clock.wait(30) == 0
        finally:
            clock.kill()
            client.close()
    assert locks(node) == [None, None]


def _next_result(client: ClockClient) -> tuple[int, ResultCode]:
    while not (results := client.results()):
        assert select.select([client], [], [], 30)[0], "no result"
        assert client.alive
    return results[0].request_id, results[0].code
