"""The sampler's thread: counters often, clocks and reasons four times a second."""

from __future__ import annotations

import threading

import pytest

from perseusd.daemon.sampler import STATE_INTERVAL_S, Sampler, reason_names
from perseusd.errors import GpuError
from perseusd.gpus.base import ClockReason
from perseusd.gpus.simulated import SPECS, create_node


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
    assert len(sampler.readings) > 3 * len(sampler.states)
    assert all(state.clock_mhz > 0 for state in sampler.states)


def test_a_gpu_that_cannot_tell_why_leaves_no_half_state(node, monkeypatch) -> None:
    """Its error is in the view, and neither a reading nor a state of that moment is passed on."""
    sampler = Sampler(node.gpus[:1], 0.005)
    gpu = node.gpus[0]

    def refuse() -> ClockReason:
        raise GpuError("no reasons here")

    monkeypatch.setattr(gpu, "reasons", refuse)
    sampler._read(gpu, whole=True)
    assert sampler.views[gpu.info.uuid].error == "no reasons here"
    assert not sampler.states
    assert not sampler.readings
