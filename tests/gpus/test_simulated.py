"""Simulated GPUs: what every process sees of work, clocks and energy."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from perseusd.errors import GpuError
from perseusd.gpus import open_gpus
from perseusd.gpus.base import ClockReason, GpuLostError, GpuPermissionError
from perseusd.gpus.physics import WorkCurve
from perseusd.gpus.simulated import SPECS, Fault, SimulatedNode, create_node, open_node

Maker = Callable[..., SimulatedNode]
NS = 10**9

_COMPUTE = textwrap.dedent(
    """
    import sys, time
    from perseusd.gpus.physics import WorkCurve
    from perseusd.gpus.simulated import open_node
    gpu = open_node(sys.argv[1]).gpus[0]
    clocks = len(gpu.spec.supported_clocks_mhz)
    engine = gpu.engine()
    engine.load([WorkCurve((0.003,) * clocks, (1.0,) * clocks)])
    start_ns = time.monotonic_ns()
    engine.submit(0, start_ns)
    print("ready", flush=True)
    while True:
        end_ns = engine.end_ns()
        if end_ns is not None:
            engine.submit(0, end_ns)
    """
)


def start_training(node: SimulatedNode) -> subprocess.Popen[str]:
    """A process that computes without a pause, 3 ms and 1 J at a time."""
    process = subprocess.Popen(
        [sys.executable, "-c", _COMPUTE, str(node.path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.stdout.close()
    return process


def test_presets_are_the_measured_gpus() -> None:
    """The three GPUs have the clocks and blocking powers that the workloads were measured with."""
    a100, a40 = SPECS["a100-sxm"], SPECS["a40"]
    assert a100.supported_clocks_mhz == tuple(range(210, 1411, 15))
    assert SPECS["a100-pcie"].supported_clocks_mhz == a100.supported_clocks_mhz
    assert a40.supported_clocks_mhz[-1] == 1740
    assert (a100.blocking_power_w, a40.blocking_power_w) == (83.64, 70.38)


def test_energy_of_work_and_waiting(make_node: Maker, curve: WorkCurve) -> None:
    """Waiting draws blocking power, a computation its curve's energy, a closed GPU idle power."""
    gpu = make_node().gpus[0]
    engine = gpu.engine()
    engine.load([curve])
    start_ns = time.monotonic_ns()
    before_j = gpu.true_energy_j(start_ns)
    engine.submit(0, start_ns)
    time.sleep(0.05)
    end_ns = engine.end_ns()
    assert end_ns == start_ns + 20_000_000
    assert gpu.true_energy_j(end_ns) - before_j == pytest.approx(6.0)
    waited_j = gpu.true_energy_j(end_ns + NS // 100) - gpu.true_energy_j(end_ns)
    assert waited_j == pytest.approx(0.8364)
    assert gpu.power_w() == 83.64
    engine.close()
    assert gpu.power_w() == 55.0
    now_ns = time.monotonic_ns()
    idle_j = gpu.true_energy_j(now_ns + NS) - gpu.true_energy_j(now_ns)
    assert idle_j == pytest.approx(55.0)


def test_clock_change_stretches_running_work(make_node: Maker, curve: WorkCurve) -> None:
    """A lock in the middle of a computation moves its end, and other processes' view of it."""
    node = make_node()
    gpu = node.gpus[0]
    engine = gpu.engine()
    engine.load([curve])
    start_ns = time.monotonic_ns()
    engine.submit(0, start_ns, factor=100)  # 2 s at the highest clock
    at_full_ns = engine.predicted_end_ns()
    generation = engine.clock_generation()
    gpu.lock_clock(705)  # half of 1410
    assert engine.clock_generation() != generation
    predicted_ns = engine.predicted_end_ns()
    assert at_full_ns is not None
    assert predicted_ns is not None
    assert at_full_ns == start_ns + 2 * NS
    changed_ns = gpu.clock_history(time.monotonic_ns() + NS).changes[-1].effective_ns
    assert predicted_ns == pytest.approx(changed_ns + 2 * (at_full_ns - changed_ns), abs=1000)
    time.sleep(0.005)
    assert gpu.power_w() == pytest.approx(200.0)
    assert gpu.clock_mhz() == 705


def test_a_lock_settles_after_its_write(make_node: Maker) -> None:
    """The write takes its latency; the clock changes only after the settling time."""
    gpu = make_node(write_latency_s=0.02, settle_s=0.3).gpus[0]
    before = time.monotonic()
    gpu.lock_clock(1005)
    assert time.monotonic() - before >= 0.02
    assert (gpu.locked_mhz(), gpu.clock_mhz()) == (1005, 1410)
    time.sleep(0.35)
    assert gpu.clock_mhz() == 1005
    gpu.reset_clock()
    assert gpu.locked_mhz() is None
    assert gpu.clock_writes() == 2


def test_writes_of_a_node_are_serialised(make_node: Maker) -> None:
    """Four GPUs written at once take four latencies, as the driver's lock makes them."""
    node = make_node(4, write_latency_s=0.02)
    threads = [threading.Thread(target=gpu.lock_clock, args=(1005,)) for gpu in node.gpus]
    before = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - before >= 0.08
    assert [gpu.locked_mhz() for gpu in node.gpus] == [1005] * 4


def test_unsupported_clock_is_refused_with_the_nearest(make_node: Maker) -> None:
    """The error names the value and the nearest supported clock, and nothing is written."""
    gpu = make_node().gpus[0]
    with pytest.raises(GpuError, match=r"1006 MHz; the nearest .* 1005 MHz"):
        gpu.lock_clock(1006)
    assert gpu.locked_mhz() is None


def test_power_limit_caps_work(make_node: Maker, curve: WorkCurve) -> None:
    """Work above the power limit runs at the highest clock within it, and says so."""
    gpu = make_node(power_limit_w=200.0).gpus[0]
    engine = gpu.engine()
    engine.load([curve])
    engine.submit(0, time.monotonic_ns(), factor=50)
    assert gpu.clock_mhz() == 705
    assert gpu.power_w() <= 200.0
    assert gpu.reasons() == ClockReason.SW_POWER_CAP


def test_counter_ticks_and_gpus_tick_apart(make_node: Maker) -> None:
    """The counter stands still between ticks and never runs ahead of the exact energy."""
    node = make_node(2, counter_tick_s=0.2)
    values = set()
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline:
        value = node.gpus[0].energy_j()
        assert value <= node.gpus[0].true_energy_j()
        values.add(value)
    assert 2 <= len(values) <= 8  # and not one for each of the thousands of readings
    gpu, other = node.gpus
    assert gpu.energy_j() != other.energy_j()


def test_one_process_computes(make_node: Maker, curve: WorkCurve) -> None:
    """A GPU that is open is refused to a second engine, which learns who has it."""
    gpu = make_node().gpus[0]
    assert gpu.process_ids() == ()
    assert gpu.reasons() == ClockReason.IDLE
    engine = gpu.engine()
    assert gpu.process_ids() == (os.getpid(),)
    with pytest.raises(GpuError, match=str(os.getpid())):
        gpu.engine()
    engine.close()
    assert gpu.process_ids() == ()
    gpu.engine().close()


def test_illegal_submissions_change_nothing(make_node: Maker, curve: WorkCurve) -> None:
    """Unknown kinds, bad factors, wrong curves and overlapping work are refused."""
    gpu = make_node().gpus[0]
    engine = gpu.engine()
    with pytest.raises(GpuError, match="kinds loaded"):
        engine.submit(0, time.monotonic_ns())
    with pytest.raises(GpuError, match="2 clocks"):
        engine.load([WorkCurve((1.0, 2.0), (1.0, 2.0))])
    engine.load([curve])
    start_ns = time.monotonic_ns()
    engine.submit(0, start_ns)
    with pytest.raises(GpuError, match="before the one started"):
        engine.submit(0, start_ns + 19_999_999)
    with pytest.raises(GpuError, match="factor"):
        engine.submit(0, start_ns + NS, factor=0)
    assert engine.predicted_end_ns() == start_ns + 20_000_000


def test_submission_slightly_in_the_past(make_node: Maker, curve: WorkCurve) -> None:
    """Work noticed late starts when it should have: its end and energy do not depend on delay."""
    gpu = make_node().gpus[0]
    engine = gpu.engine()
    engine.load([curve])
    start_ns = time.monotonic_ns()
    engine.submit(0, start_ns)
    time.sleep(0.03)
    engine.submit(0, start_ns + 22_000_000)
    time.sleep(0.03)
    assert engine.end_ns() == start_ns + 42_000_000
    spent_j = gpu.true_energy_j(start_ns + 42_000_000) - gpu.true_energy_j(start_ns)
    assert spent_j == pytest.approx(2 * 6.0 + 0.002 * 83.64)


def test_curves_can_be_replaced(make_node: Maker, curve: WorkCurve) -> None:
    """After a second load both the new kinds and the account of the old ones are right."""
    gpu = make_node().gpus[0]
    engine = gpu.engine()
    engine.load([curve])
    start_ns = time.monotonic_ns()
    engine.submit(0, start_ns)
    time.sleep(0.025)
    engine.load([WorkCurve(curve.time_s, tuple(2 * e for e in curve.energy_j))])
    half_way_j = gpu.true_energy_j(start_ns + 10_000_000) - gpu.true_energy_j(start_ns)
    assert half_way_j == pytest.approx(3.0)
    again_ns = time.monotonic_ns()
    engine.submit(0, again_ns)
    spent_j = gpu.true_energy_j(again_ns + 20_000_000) - gpu.true_energy_j(again_ns)
    assert spent_j == pytest.approx(12.0)


def test_other_process_sees_monotone_counter_while_clocks_change(make_node: Maker) -> None:
    """Beside a computing process and a clock writer the counter never goes back,
    and what it counts is work, 333 W, not waiting."""
    node = make_node(counter_tick_s=0.02)
    training = start_training(node)
    reader = open_node(node.path).gpus[0]
    stop = threading.Event()

    def write_clocks() -> None:
        while not stop.wait(0.002):
            node.gpus[0].lock_clock(1005)
            node.gpus[0].reset_clock()

    writer = threading.Thread(target=write_clocks)
    writer.start()
    try:
        readings = [(time.monotonic(), reader.true_energy_j())]
        while time.monotonic() < readings[0][0] + 0.5:
            readings.append((time.monotonic(), reader.true_energy_j()))
            assert readings[-1][1] >= readings[-2][1] - 0.5  # a late submission at most
            shown_j = reader.energy_j()
            assert shown_j <= reader.true_energy_j() + 0.5
    finally:
        stop.set()
        writer.join()
        training.kill()
        training.wait()
    (begin_s, begin_j), (end_s, end_j) = readings[0], readings[-1]
    assert 100 < (end_j - begin_j) / (end_s - begin_s) < 340  # less when it has no core to run on


def test_reading_beside_a_stopped_training_process(make_node: Maker) -> None:
    """With the computing process stopped its GPU is read and written at once, and waits."""
    node = make_node()
    training = start_training(node)
    gpu = node.gpus[0]
    try:
        training.send_signal(signal.SIGSTOP)
        os.waitpid(training.pid, os.WUNTRACED)
        time.sleep(0.005)
        before = time.monotonic()
        assert gpu.process_ids() == (training.pid,)
        gpu.lock_clock(1005)
        gpu.reset_clock()
        assert gpu.power_w() == 83.64
        first_j = gpu.true_energy_j()
        assert gpu.true_energy_j() >= first_j
        assert time.monotonic() - before < 1
    finally:
        training.kill()
        training.wait()


def test_killed_training_process_frees_its_gpu(make_node: Maker, curve: WorkCurve) -> None:
    """After SIGKILL nobody has the GPU open, and the next process's counter goes on upwards."""
    node = make_node()
    training = start_training(node)
    gpu = node.gpus[0]
    training.kill()
    training.wait()
    killed_j = gpu.true_energy_j()
    assert gpu.process_ids() == ()
    engine = gpu.engine()
    engine.load([curve])
    engine.submit(0, time.monotonic_ns())
    assert gpu.true_energy_j() >= killed_j


def test_write_lock_dies_with_its_holder(make_node: Maker) -> None:
    """A clock writer killed while it holds the node's write lock holds up nobody."""
    node = make_node(2, write_latency_s=0.5)
    program = "import sys; from perseusd.gpus.simulated import open_node; "
    program += "print('ready', flush=True); open_node(sys.argv[1]).gpus[0].lock_clock(1005)"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(node.path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        time.sleep(0.1)
        writer.kill()
    before = time.monotonic()
    node.gpus[1].lock_clock(1005)
    assert time.monotonic() - before < 2
    assert node.gpus[0].locked_mhz() is None


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.FAIL, GpuError),
        (Fault.LOST, GpuLostError),
        (Fault.NO_PERMISSION, GpuPermissionError),
    ],
)
def test_faults_set_anywhere_fail_writes_everywhere(
    make_node: Maker, fault: Fault, error: type[GpuError]
) -> None:
    """A fault set through one view of the file fails a write through another."""
    node = make_node()
    node.gpus[0].set_fault(fault)
    other = open_node(node.path)
    with pytest.raises(error):
        other.gpus[0].lock_clock(1005)
    node.gpus[0].set_fault(Fault.NONE)
    other.gpus[0].lock_clock(1005)
    assert node.gpus[0].locked_mhz() == 1005
    other.close()


def test_hanging_write_holds_up_its_gpu_alone(make_node: Maker) -> None:
    """While one GPU's write hangs another's goes through; cleared, it completes."""
    node = make_node(2)
    node.gpus[0].set_fault(Fault.HANG)
    hanging = threading.Thread(target=node.gpus[0].lock_clock, args=(1005,))
    hanging.start()
    node.gpus[1].lock_clock(1005)
    assert (node.gpus[0].locked_mhz(), node.gpus[1].locked_mhz()) == (None, 1005)
    node.gpus[0].set_fault(Fault.NONE)
    hanging.join(10)
    assert node.gpus[0].locked_mhz() == 1005


def test_same_gpus_through_the_factory(make_node: Maker) -> None:
    """open_gpus on a file gives the same GPUs, stable UUIDs, without importing pynvml."""
    node = make_node(2)
    opened = open_gpus(node.path)
    assert [gpu.info for gpu in opened.gpus] == [gpu.info for gpu in node.gpus]
    assert opened.gpus[1].info.uuid.endswith("-000000000001")
    opened.close()
    program = (
        "import sys; from perseusd.gpus import open_gpus; open_gpus(sys.argv[1]); "
        "sys.exit('pynvml' in sys.modules)"
    )
    command = [sys.executable, "-c", program, str(node.path)]
    assert subprocess.run(command, check=False, timeout=30).returncode == 0


@pytest.mark.parametrize("damage", ["empty", "foreign", "cut", "specification"])
def test_damaged_file_is_refused_with_the_fix(tmp_path: Path, damage: str) -> None:
    """A file that is not wholly ours is refused, naming it and what to do."""
    path = tmp_path / "node"
    create_node(path, SPECS["a40"], 2).close()
    whole = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "foreign": b"\x7fELF" + whole[4:],
            "cut": whole[:-1],
            "specification": whole.replace(b"supported_clocks_mhz", b"something_else_mhz__"),
        }[damage]
    )
    with pytest.raises(GpuError, match="remove it") as refusal:
        open_node(path)
    assert str(path) in str(refusal.value)


def test_missing_file_and_bad_numbers(tmp_path: Path) -> None:
    """A missing file, no GPUs and an impossible specification are refused by name."""
    with pytest.raises(GpuError, match="nowhere"):
        open_node(tmp_path / "nowhere")
    with pytest.raises(GpuError, match="0 simulated GPUs"):
        create_node(tmp_path / "node", SPECS["a40"], 0)
    with pytest.raises(GpuError, match="cannot be created"):
        create_node(tmp_path / "no" / "folder", SPECS["a40"], 1)
