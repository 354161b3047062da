"""`perseusctl selftest` on the fake NVML library: what it measures, refuses, and never leaves."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from nvml_build import environment
from nvml_faults import GpuControls, set_faults, set_gpu

from perseusd.gpus.base import ClockReason
from perseusd.gpus.simulated import SPECS, SimulatedNode, create_node

COMMAND = "import sys; from perseusd.ctl.main import main; sys.exit(main())"
NOT_SUPPORTED, UNKNOWN = 3, 999


class Bench:
    """A node with two GPUs behind the library, and selftests on it."""

    def __init__(self, folder: Path, library: Path) -> None:
        self.folder = folder
        self.node: SimulatedNode = create_node(folder / "node", SPECS["a100-sxm"], 2)
        self._environment = os.environ | environment(library, self.node.path)
        self._environment["PERSEUS_RUNTIME_DIR"] = str(folder)

    def command(self, *words: str) -> list[str]:
        state = ["--state-dir", str(self.folder / "state")]
        state += ["--node-lock", str(self.folder / "node.lock")]
        return [sys.executable, "-c", COMMAND, "selftest", "--rounds", "2", *state, *words]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words),
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*words), env=self._environment, stdout=subprocess.PIPE, text=True
        )

    def report(self, *words: str) -> dict[str, Any]:
        done = self.run("--json", *words)
        report: dict[str, Any] = json.loads(done.stdout)
        assert done.returncode == (0 if report.get("ok") else 1), done.stderr
        return report

    def locked(self) -> list[int]:
        return [mhz for gpu in self.node.gpus if (mhz := gpu.locked_mhz()) is not None]

    def controls(self, index: int, **values: Any) -> None:
        set_gpu(self.node.path, index, GpuControls(**values))


@pytest.fixture
def bench(tmp_path: Path, nvml_library: Path) -> Iterator[Bench]:
    made = Bench(tmp_path, nvml_library)
    yield made
    made.node.close()


def test_measures_and_puts_back(bench: Bench) -> None:
    """Locks are taken, followed and timed on each GPU; at the end every clock is full, and the
    report says what an idle GPU does not verify."""
    report = bench.report()
    assert report["ok"] is True
    for gpu in report["gpus"]:
        assert gpu["under"] == "idle"
        assert gpu["locks"] == gpu["locks_done"] == gpu["followed"] == 6
        assert 0.004 < gpu["lock_s"]["p50"] < 0.5  # the fake takes 5 ms
        assert gpu["lock_s"]["p50"] <= gpu["lock_s"]["p99"] <= gpu["lock_s"]["max"]
        assert gpu["restored"] is True
    assert any("load" in item for item in report["not_verified"])
    assert not bench.locked()
    assert json.loads((bench.folder / "state/clock-intent.json").read_text())["may_be_locked"] == []


def test_a_load_of_ones_own_is_named(bench: Bench) -> None:
    """A GPU that a process uses is refused, unless that process is named; then it is under load."""
    engine = bench.node.gpus[0].engine()  # this very process, and it does not idle
    try:
        done = bench.run("--gpu", "0")
        report = bench.report("--gpu", "0", "--load", str(os.getpid()))
    finally:
        engine.close()
    assert done.returncode == 1
    assert f"used by process {os.getpid()}" in done.stderr
    assert [gpu["under"] for gpu in report["gpus"]] == ["load"]
    assert any("under load" in item for item in report["verified"])


def test_refused_beside_a_daemon(bench: Bench) -> None:
    """A daemon that runs writes clocks itself."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as daemon:
        daemon.bind(str(bench.folder / "status.sock"))
        daemon.listen()
        done = bench.run()
    assert done.returncode == 1
    assert "systemctl stop perseusd" in done.stderr
    assert bench.node.gpus[0].clock_writes() == 0


def test_a_driver_that_refuses_is_reported(bench: Bench) -> None:
    """A lock that the driver does not take fails the test of that GPU, in the driver's words."""
    set_faults(bench.node.path, ("nvmlDeviceSetGpuLockedClocks", 1, NOT_SUPPORTED))
    report = bench.report()
    assert report["ok"] is False
    assert [bool(gpu["errors"]) for gpu in report["gpus"]] == [False, True]
    assert "cannot do it" in report["gpus"][1]["errors"][0]


def test_heat_explains_a_clock_that_is_lower(bench: Bench) -> None:
    """A GPU that heat keeps below the lock is counted as that, and as nothing else."""
    bench.node.gpus[0].limit_clock(795, ClockReason.SW_THERMAL)
    (gpu,) = bench.report("--gpu", "0", "--rounds", "1")["gpus"]
    assert (gpu["followed"], gpu["limited"]) == (0, gpu["locks_done"])


def test_words_that_name_no_gpu_to_test(bench: Bench) -> None:
    """A GPU that is not there, and one that is divided by MIG: usage."""
    bench.controls(1, mig=True)
    for word, said in (("7", "not on this node"), ("1", "divided by MIG")):
        done = bench.run("--gpu", word)
        assert done.returncode == 2
        assert said in done.stderr


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_in_the_middle(bench: Bench, number: int) -> None:
    """Its clock process puts back what it had locked, however it ends."""
    process = bench.start("--rounds", "1000", "--gpu", "0")
    try:
        eventually(bench.locked)
        process.send_signal(number)
        process.wait(20)
        eventually(lambda: not bench.locked())
        time.sleep(0.1)
        assert not bench.locked()
    finally:
        process.kill()
        process.communicate()


def test_through_a_service_that_listens(bench: Bench) -> None:
    """The node's own perseusd-clock is what is tested, where it runs."""
    listening = bench.folder / "clock.sock"
    service = [sys.executable, "-m", "perseusd.clock", "--socket", str(listening)]
    service += ["--state-dir", str(bench.folder / "service")]
    service += ["--node-lock", str(bench.folder / "service.lock")]
    process = subprocess.Popen(service, env=bench._environment)
    try:
        eventually(listening.exists)
        report = bench.report("--clock-socket", str(listening), "--rounds", "1")
        assert report["ok"] is True
        assert report["through"] == str(listening)
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(20)


def eventually(condition: Callable[[], Any], patience_s: float = 20.0) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)
