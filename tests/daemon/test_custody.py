"""What is kept at full clock and why: through real pynvml, on a job that is held.

One daemon and one job serve all tests; each ends with the job free to be held again.
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import time
from typing import Any

import pytest
from nvml_faults import HANG, set_faults

from perseusd.ctl.main import main

READ, WRITE = "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceSetGpuLockedClocks"
RESET = "nvmlDeviceResetGpuLockedClocks"
LOST = 15


@pytest.fixture(scope="module")
def rig(make_module_rig, nvml_library) -> Any:
    return make_module_rig(nvml=nvml_library)


@pytest.fixture
def held(rig):
    set_faults(rig.node.path)
    rig.hold()
    return rig


def gpu(rig, index: int) -> dict[str, Any]:
    return rig.status()["gpus"][index]


def ctl(rig, *arguments: str) -> tuple[int, dict[str, Any]]:
    """perseusctl's exit code and answer."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = main([*arguments, "--json", "--runtime-dir", str(rig.folder)])
    return code, json.loads(said.getvalue())


def kept_at_full(rig, code: str) -> bool:
    job = rig.job_status()
    return job["why_code"] == code and job["state"] in ("release", "baseline")


def test_a_hanging_read(held, helpers) -> None:
    """Its GPU alone is stuck, the job goes to full clock, the others are read on; it comes back."""
    set_faults(held.node.path, (READ, 1, HANG))
    helpers.until(lambda: gpu(held, 1)["state"] == "stuck")
    helpers.until(lambda: kept_at_full(held, "gpu_stuck") and not held.locked())
    before = [g["readings"] for g in held.status()["gpus"]]
    helpers.until(
        lambda: all(g["readings"] > before[g["index"]] + 5 for g in held.status()["gpus"][2:])
    )
    states = [g["state"] for g in held.status()["gpus"]]
    assert states == ["ok", "stuck", "ok", "ok"]
    assert ctl(held, "verify")[0] == 1
    set_faults(held.node.path)
    helpers.until(lambda: gpu(held, 1)["state"] == "ok")
    helpers.until(lambda: held.state() == "hold", poll_s=0.05)


def test_a_hanging_write(held, helpers) -> None:
    """Stuck in status; the clocks of all others are put back within a second."""
    set_faults(held.node.path, (WRITE, 2, HANG), (RESET, 2, HANG))
    helpers.until(lambda: gpu(held, 2)["state"] == "stuck")
    helpers.until(lambda: kept_at_full(held, "gpu_stuck"))
    others = [g for i, g in enumerate(held.node.gpus) if i != 2]
    helpers.until(lambda: not any(g.locked_mhz() for g in others))
    assert [g["state"] for g in held.status()["gpus"]] == ["ok", "ok", "stuck", "ok"]
    set_faults(held.node.path)
    helpers.until(lambda: not held.locked() and gpu(held, 2)["state"] == "ok")
    helpers.until(lambda: held.state() == "hold", poll_s=0.05)


def test_a_lost_gpu(held, helpers) -> None:
    """Reported as lost with the way out, its job released; back without a restart."""
    set_faults(held.node.path, ("*", 3, LOST))
    helpers.until(lambda: gpu(held, 3)["state"] == "lost")
    helpers.until(lambda: kept_at_full(held, "gpu_failed"))
    assert "gpu-reset" in gpu(held, 3)["error"]
    set_faults(held.node.path)
    helpers.until(lambda: gpu(held, 3)["state"] == "ok" and not held.locked())
    helpers.until(lambda: held.state() == "hold", poll_s=0.05)


def test_a_foreign_writer(held, helpers) -> None:
    """Suspected though nothing is asked, reported and respected: nothing is written there, not
    even at the daemon's end, unless an operator says so."""
    assert ctl(held, "release", "tiny")[0] == 0
    helpers.until(lambda: not held.locked() and gpu(held, 1)["agrees"])
    assert ctl(held, "verify")[0] == 0
    theirs, uuid = held.node.gpus[1], held.node.gpus[1].info.uuid
    theirs.lock_clock(1005)
    helpers.until(lambda: gpu(held, 1)["state"] == "foreign")
    assert held.log.read_text().count("kept at full clock: another tool has set the clock") == 1
    assert ctl(held, "resume", uuid)[1]["changed"] is True  # never released, and yet
    helpers.until(lambda: theirs.locked_mhz() is None)
    theirs.lock_clock(1005)
    helpers.until(lambda: gpu(held, 1)["state"] == "foreign")
    written = theirs.clock_writes()
    assert ctl(held, "resume", "tiny")[0] == 0
    helpers.until(lambda: kept_at_full(held, "foreign_writer"))
    assert f"`perseusctl resume {uuid}`" in held.job_status()["why"]
    code, verified = ctl(held, "verify")
    assert code == 1
    assert [g["agrees"] for g in verified["gpus"]].count(False) == 1
    job, held.job = held.job, None
    held.stop()  # the daemon
    held.start("--observe")
    helpers.until(lambda: gpu(held, 1)["state"] == "foreign")
    held.stop()
    held.job = job
    assert (theirs.locked_mhz(), theirs.clock_writes()) == (1005, written)
    theirs.reset_clock()


def test_one_job_and_one_gpu_are_released(held, helpers) -> None:
    """At full clock until resumed; what has no such name is refused with exit code 2."""
    for name in ("tiny", "1"):
        code, answer = ctl(held, "release", name)
        assert code == 0
        helpers.until(lambda: kept_at_full(held, "released") and not held.locked())
        assert answer["name"] in held.status()["daemon"]["released"]
        assert [ctl(held, "resume", name)[1]["changed"] for _ in range(2)] == [True, False]
        assert held.status()["daemon"]["released"] == {}
    code, answer = ctl(held, "release", "nobody")
    assert code == 2
    assert "'nobody'" in answer["error"]
    helpers.until(lambda: held.state() == "hold", poll_s=0.05)


def test_a_second_daemon_of_the_node_is_refused(held, helpers, tmp_path) -> None:
    """From another runtime directory, too: exit code 78, and it names who writes the clocks."""
    done = subprocess.run(
        [sys.executable, "-m", "perseusd", "run", "--runtime-dir", str(tmp_path)],
        env=held.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 78
    assert f"(process {held.clock_pid()})" in done.stderr
    assert held.status()["daemon"]["clock_process"] == "alive"


def test_pause_lets_go_of_the_driver(held, helpers) -> None:
    """Full clocks, no process of ours has the driver open, the job is watched; resume goes on."""
    done = len(held.job.iterations())
    code, answer = ctl(held, "pause")
    assert (code, answer["driver"]) == (0, "free")
    assert not held.locked()
    assert "perseusd.clock" not in held.children()
    calls = [g.clock_writes() for g in held.node.gpus]
    assert kept_at_full(held, "paused")
    uuid = held.node.gpus[1].info.uuid
    assert f"kept at full clock: {uuid}: paused by an operator" in held.log.read_text()
    helpers.until(lambda: len(held.job.iterations()) > done + 2)
    before = held.status()
    assert before["daemon"]["driver"] == "free"
    time.sleep(0.5)
    assert [g["readings"] for g in held.status()["gpus"]] == [g["readings"] for g in before["gpus"]]
    assert [g.clock_writes() for g in held.node.gpus] == calls
    assert ctl(held, "verify")[0] == 0
    assert ctl(held, "pause")[0] == 0  # again is no error
    for changed in (True, False):
        told = {"schema_version": 1, "driver": "held", "changed": changed}
        assert ctl(held, "resume") == (0, told)
    helpers.until(lambda: held.state() == "hold", poll_s=0.05)


def test_a_gpu_that_hangs_at_the_start_comes_later(rig, helpers) -> None:
    """Neither it nor one that fails keeps the daemon from the others; both come without restart."""
    rig.stop()
    set_faults(rig.node.path, ("nvmlDeviceGetName", 0, HANG), ("nvmlDeviceGetName", 2, LOST))
    rig.start()
    status = rig.status()
    assert [g["index"] for g in status["gpus"]] == [1, 3]
    assert {m["index"] for m in status["daemon"]["missing_gpus"]} == {0, 2}
    assert ctl(rig, "verify")[0] == 1
    set_faults(rig.node.path)
    helpers.until(lambda: [g["index"] for g in rig.status()["gpus"]] == [0, 1, 2, 3], poll_s=0.1)
    assert rig.status()["daemon"]["missing_gpus"] == []
    rig.hold()
    assert {0, 2} & {i for i, g in enumerate(rig.node.gpus) if g.clock_writes()}


def test_a_hanging_call_bounds_the_stop(held) -> None:
    """SIGTERM with a read and a write that hang: the others are full within 1 s, exit in time."""
    set_faults(held.node.path, (READ, 1, HANG), (WRITE, 1, HANG), (RESET, 1, HANG))
    sent_s = time.monotonic()
    held.daemon.terminate()
    others = [g for i, g in enumerate(held.node.gpus) if i != 1]
    while any(g.locked_mhz() is not None for g in others):
        assert time.monotonic() < sent_s + 1.0
        time.sleep(0.002)
    assert held.daemon.wait(12) == 0
    sys.stdout.write(f"exit after {time.monotonic() - sent_s:.2f} s\n")
    set_faults(held.node.path)
