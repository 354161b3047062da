"""Spans stamped by a device that runs behind the host; the device is a stand-in of real threads."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator

import perseus_hooks
import pytest
from perseus_hooks import device_times
from perseus_hooks.adapters import torch_cuda
from perseus_hooks.events import Event, StageEnd, StageStart
from perseus_hooks.testing import Recording, record

from tests.hooks.stand_in_cuda import StandIn

PATIENCE_S = 20.0
MakeCuda = Callable[..., StandIn]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeCuda]:
    """Makes PyTorch's CUDA come up in this process. The driver's part is tested with a library."""
    made: list[StandIn] = []

    def make(drift: float = 0.0) -> StandIn:
        made.append(StandIn(drift))
        monkeypatch.setitem(sys.modules, "torch.cuda", made[-1])
        return made[-1]

    monkeypatch.setattr(torch_cuda, "_stay_out_of_captures", lambda: None)
    yield make
    for one in made:
        one.end()


def heard(recording: Recording, count: int) -> list[StageStart | StageEnd]:
    """So many events, once they have come."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        events = _stages(recording.events)
        if len(events) >= count:
            return events
        time.sleep(0.002)
    pytest.fail(f"only {len(_stages(recording.events))} of {count} events came")


def _stages(events: list[Event]) -> list[StageStart | StageEnd]:
    return [e for e in events if isinstance(e, StageStart | StageEnd)]


def test_a_span_is_as_long_as_the_device_worked_and_its_caller_never_waited(cuda: MakeCuda) -> None:
    """The launches are over before the first kernel has run; the stamps are when they ran."""
    device = cuda()
    with record() as recording:
        with device.stream.stalled():
            for microbatch in range(3):
                with perseus_hooks.stage("forward", microbatch=microbatch):
                    device.stream.launch(0.03)
            assert not _stages(recording.events)
            launched_ns = time.monotonic_ns()
        heard(recording, 6)
    assert [span.microbatch for span in recording.spans] == [0, 1, 2]
    for span in recording.spans:
        assert span.start_ns > launched_ns
        assert span.duration_ns >= 0.0299e9
    assert [event.sequence for event in _stages(recording.events)] == [1, 2, 3, 4, 5, 6]


def test_the_hello_says_whose_times_they_are_from_when_cuda_comes_up(cuda: MakeCuda) -> None:
    """Before, they are the host's; the daemon plans on the device's alone."""
    with record() as recording:
        perseus_hooks.configure(stage=0, stages=1)
        with perseus_hooks.stage("forward"):
            pass
        assert (recording.hello.time_source, recording.hello.uses_cuda) == ("host", False)
        cuda()
        with perseus_hooks.stage("forward"):
            pass
        assert (recording.hello.time_source, recording.hello.uses_cuda) == ("cuda_event", True)
        perseus_hooks.configure(stage=0, stages=2)
        assert (recording.hello.time_source, recording.hello.stages) == ("cuda_event", 2)
        heard(recording, 4)


def test_whoever_wants_the_hosts_times_gets_them(cuda: MakeCuda) -> None:
    """And then they are called that, so that nobody plans on them."""
    device = cuda()
    with record() as recording:
        perseus_hooks.configure(stage=0, stages=1, time_source="host")
        with device.stream.stalled(), perseus_hooks.stage("forward"):
            device.stream.launch(0.01)
        assert len(_stages(recording.events)) == 2
    assert recording.hello.time_source == "host"
    assert device.recorded == 0


def test_stamps_keep_to_the_hosts_clock_whatever_the_devices_does(
    cuda: MakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device's clock starts elsewhere and runs too fast: new anchors make up for it."""
    monkeypatch.setattr(device_times, "ANCHOR_NS", 30_000_000)
    device = cuda(drift=0.5)
    with record() as recording:
        for _ in range(60):
            with perseus_hooks.stage("forward"):
                device.stream.launch(0.01)
            device.stream.finish()
        events = heard(recording, 120)
        told = sorted(event.time_ns for event in events)
        passed = sorted(device.passed)
    drifted_ns = 0.5 * (told[-1] - told[0])
    assert abs((told[-1] - told[0]) - (passed[-1] - passed[0])) < 0.3 * drifted_ns


def test_while_a_graph_is_captured_nothing_is_recorded_and_the_gap_is_told(cuda: MakeCuda) -> None:
    """An event in a graph would be the graph's; the daemon must know that something is missing."""
    device = cuda()
    with record() as recording:
        device.capturing = True
        with perseus_hooks.stage("forward"):
            pass
        device.capturing = False
        with perseus_hooks.stage("backward"):
            pass
        events = heard(recording, 2)
    assert [event.sequence for event in events] == [3, 4]


def test_a_device_that_fails_ends_what_is_told_and_nothing_else(
    cuda: MakeCuda, caplog: pytest.LogCaptureFixture
) -> None:
    """The training learns of its CUDA error where it would without us; we log one line."""
    device = cuda()
    with caplog.at_level(logging.WARNING, "perseus_hooks"), record() as recording:
        with perseus_hooks.stage("forward"):
            pass
        heard(recording, 2)
        device.broken = True
        for _ in range(20):
            with perseus_hooks.stage("forward"):
                time.sleep(0.005)
        assert len(_stages(recording.events)) == 2
    assert len([r for r in caplog.records if "device failed" in r.message]) == 1


def test_a_stalled_device_costs_a_bounded_memory_and_holds_up_no_exit(
    cuda: MakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is beyond the bound is counted as lost; closing does not wait for the device."""
    monkeypatch.setattr(device_times, "MOST_PENDING", 10)
    device = cuda()
    outlet = Recording()
    with record() as other:
        hello = other.hello
    client = perseus_hooks.Client(hello, "", outlet=outlet)
    with device.stream.stalled():
        for _ in range(50):
            with client.stage("forward"):
                pass
        assert device.recorded <= 10 + device_times.ANCHOR_TRIES
        begun = time.monotonic()
        client.close()
        assert time.monotonic() - begun < PATIENCE_S / 2
    assert not _stages(outlet.events)


def test_without_a_daemon_nothing_is_put_into_the_stream(
    cuda: MakeCuda, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Hooks that nobody hears cost no launches (the socket is looked for once a second)."""
    device = cuda()
    with record() as recording:
        hello = recording.hello
    client = perseus_hooks.Client(hello, str(tmp_path_factory.mktemp("run")))
    with client.stage("forward"):
        pass
    device.stream.finish()
    before = device.recorded
    deadline = time.monotonic() + 0.3
    while time.monotonic() < deadline:
        with client.stage("forward"):
            time.sleep(0.001)
    client.close()
    assert device.recorded <= before + 2
