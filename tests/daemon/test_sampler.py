"""The sampler's thread: counters often, clocks and reasons four times a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from perseusd.daemon.sampler import STATE_INTERVAL_S, Sampler, reason_names
from perseusd.errors import GpuError
from perseusd.gpus.base import ClockReason, GpuLostError
from perseusd.gpus.simulated import SPECS, SimulatedGpu, create_node


@pytest.mark.parametrize(
    ("reasons", "names"),
    [
        (ClockReason.NONE, set()),
        (ClockReason.SW_THERMAL, {"sw_thermal"}),
        (
            ClockReason.SW_POWER_CAP | ClockReason.HW_POWER_BRAKE,
            {"sw_power_cap", "hw_power_brake"},
        ),
        (ClockReason(0x20 | 0x8000), {"sw_thermal"}),  # a bit that a later driver may set
    ],
)
def test_reasons_by_name(reasons: ClockReason, names: set[str]) -> None:
    """NVML's names in lower case, as the core's detector and status know them."""
    assert reason_names(reasons) == names


@pytest.fixture
def node(tmp_path):
    made = create_node(tmp_path / "gpus", SPECS["a100-sxm"], 2)
    yield made
    made.close()


def test_states_and_readings_come_from_every_gpu(node) -> None:
    """Both queues fill by themselves, stamped in order; states far less often than readings."""
    sampler = Sampler(node.gpus, 0.005)
    sampler.start()
    waiting = threading.Event()
    for _ in range(200):
        if len(sampler.states) >= 4:
            break
        waiting.wait(STATE_INTERVAL_S / 5)
    sampler.stop()
    uuids = {gpu.info.uuid for gpu in node.gpus}
    assert {state.uuid for state in sampler.states} == uuids
    assert {uuid for uuid, _, _ in sampler.readings} == uuids
    own = [state.time_ns for state in sampler.states if state.uuid == node.gpus[0].info.uuid]
    assert own == sorted(set(own))
    assert sum(view.readings for view in sampler.views.values()) > 3 * len(sampler.states)
    assert all(state.clock_mhz > 0 for state in sampler.states)


def test_readings_are_passed_on_around_ticks_alone(node, monkeypatch) -> None:
    """The last one before a counter moved, and the one that saw it: between them it ticked."""
    gpu = node.gpus[0]
    sampler = Sampler([gpu], 0.005)
    shown = [1.0, 1.0, 1.0, 2.0, 3.0, 3.0, 4.0, 4.0]
    stamps = []
    for joules in shown:
        monkeypatch.setattr(gpu, "energy_j", lambda joules=joules: joules)
        stamps.append(time.monotonic_ns())
        sampler.read(gpu, whole=False)
    told = list(sampler.readings)
    assert [joules for _, _, joules in told] == [1.0, 1.0, 2.0, 3.0, 3.0, 4.0]
    expected = [stamps[n] for n in (0, 2, 3, 4, 5, 6)]
    assert all(s <= at_ns for s, (_, at_ns, _) in zip(expected, told, strict=True))
    assert told[1][1] < stamps[3]
    assert sampler.views[gpu.info.uuid].readings == len(shown)


def test_a_gpu_that_cannot_tell_why_leaves_no_half_state(node, monkeypatch) -> None:
    """Its error is in the view, and neither a reading nor a state of that moment is passed on."""
    sampler = Sampler(node.gpus[:1], 0.005)
    gpu = node.gpus[0]

    def refuse() -> ClockReason:
        raise GpuError("no reasons here")

    monkeypatch.setattr(gpu, "reasons", refuse)
    sampler.read(gpu, whole=True)
    assert sampler.views[gpu.info.uuid].error == "no reasons here"
    assert not sampler.states
    assert not sampler.readings


class Hangs:
    """A simulated GPU whose reading takes until it is told to go on."""

    def __init__(self, gpu: SimulatedGpu) -> None:
        self._gpu, self.info = gpu, gpu.info
        self.go_on = threading.Event()
        self.inside = threading.Event()

    def energy_j(self) -> float:
        self.inside.set()
        self.go_on.wait()
        return self._gpu.energy_j()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._gpu, name)


def test_a_gpu_that_hangs_blinds_nobody(node, monkeypatch) -> None:
    """The others are read on, it alone is called stuck, and is read with them again later."""
    monkeypatch.setattr("perseusd.daemon.sampler.SLOW_S", 0.05)
    monkeypatch.setattr("perseusd.daemon.sampler.STUCK_S", 0.2)
    monkeypatch.setattr("perseusd.daemon.sampler.CALM_READS", 10)
    one, two = Hangs(node.gpus[0]), node.gpus[1]
    sampler = Sampler([one, two], 0.002)
    sampler.start()
    try:
        assert one.inside.wait(5)
        hung, fine = (sampler.views[gpu.info.uuid] for gpu in (one, two))
        assert _until(sampler, lambda: hung.stuck_s(time.monotonic()))
        read = len(sampler.readings)
        assert _until(sampler, lambda: len(sampler.readings) > read + 5)
        assert {uuid for uuid, _, _ in sampler.readings} == {fine.uuid}
        assert "is stuck" in (hung.trouble(time.monotonic()) or "")
        assert fine.trouble(time.monotonic()) is None
        assert not sampler.stop()  # a thread is still inside the driver
        sampler.start()
        one.go_on.set()
        assert _until(sampler, lambda: any(r[0] == hung.uuid for r in sampler.readings))
        assert hung.trouble(time.monotonic()) is None
        assert _until(sampler, lambda: threads_of(sampler) == 1)
        sampler.readings.clear()
        assert _until(sampler, lambda: len({uuid for uuid, _, _ in sampler.readings}) == 2)
    finally:
        one.go_on.set()
        assert sampler.stop()


def threads_of(sampler: Sampler) -> int:
    return sum(reader.is_alive() for reader in sampler._readers)


def _until(sampler: Sampler, condition: Callable[[], Any], patience_s: float = 10) -> bool:
    deadline_s = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        sampler.look_after()
        time.sleep(0.005)
    return True


def test_a_lost_gpu_returns_by_itself(node, monkeypatch) -> None:
    """What the driver says is kept as long as it says so; the next good reading ends it."""
    sampler = Sampler(node.gpus[:1], 0.005)
    gpu, view = node.gpus[0], sampler.views[node.gpus[0].info.uuid]
    with monkeypatch.context() as patched:
        patched.setattr(gpu, "energy_j", lambda: (_ for _ in ()).throw(GpuLostError("fell off")))
        sampler.read(gpu, whole=True)
    assert view.lost
    assert "is lost: fell off" in (view.trouble(time.monotonic()) or "")
    sampler.read(gpu, whole=True)
    assert view.trouble(time.monotonic()) is None
