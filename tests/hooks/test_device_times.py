"""Spans stamped by a device that runs behind the host; the device is a stand-in of real threads."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import perseus_hooks
import pytest
from perseus_hooks import device_times
from perseus_hooks.adapters import torch_cuda
from perseus_hooks.device_times import DeviceTimes
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
    monkeypatch.setattr(torch_cuda, "has_context", lambda index: index in made[-1].contexts)
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


def test_two_threads_that_come_first_together_are_both_heard(cuda: MakeCuda) -> None:
    """One timeline a device: what hung on another would never be told, nor all that came after."""
    device = cuda()
    both = threading.Barrier(2)

    class Slow(torch_cuda.CudaDevices):
        def device(self, key: Any) -> torch_cuda.CudaEvents:
            both.wait(PATIENCE_S)
            return super().device(key)

    recording = Recording()
    times = DeviceTimes(recording, Slow(device))
    threads = [
        threading.Thread(target=times.emit, args=(StageEnd, time.monotonic_ns(), token))
        for token in (1, 2)
    ]
    for thread in threads:
        thread.start()
    events = heard(recording, 2)
    assert sorted(event.token for event in events) == [1, 2]
    times.close(time.monotonic_ns())


def test_what_goes_wrong_on_the_way_to_the_daemon_passes(
    cuda: MakeCuda, caplog: pytest.LogCaptureFixture
) -> None:
    """No file descriptor for a socket, say: that is no failure of the device, and is said once."""
    device = cuda()

    class Flaky(Recording):
        broken = True

        def emit(self, kind: type[Any], time_ns: int, *fields: Any) -> None:
            if self.broken:
                raise OSError("too many open files")
            super().emit(kind, time_ns, *fields)

    recording = Flaky()
    times = DeviceTimes(recording, torch_cuda.CudaDevices(device))
    with caplog.at_level(logging.WARNING, "perseus_hooks"):
        for token in range(1, 4):
            times.emit(StageEnd, time.monotonic_ns(), token)
        deadline = time.monotonic() + PATIENCE_S
        while times._pending and time.monotonic() < deadline:
            time.sleep(0.002)
        recording.broken = False
        times.emit(StageEnd, time.monotonic_ns(), 4)
        assert [event.token for event in heard(recording, 1)] == [4]
    assert [r.getMessage() for r in caplog.records] == [
        "perseusd does not hear of some computations: OSError('too many open files')"
    ]
    times.close(time.monotonic_ns())


def test_after_a_failure_nothing_grows(cuda: MakeCuda) -> None:
    """The gap is told once; a training of weeks that goes on without us fills no memory."""
    device = cuda()
    recording = Recording()
    times = DeviceTimes(recording, torch_cuda.CudaDevices(device))
    times.emit(StageEnd, time.monotonic_ns(), 1)
    heard(recording, 1)
    device.broken = True
    times.emit(StageEnd, time.monotonic_ns(), 2)
    deadline = time.monotonic() + PATIENCE_S
    while not times.stopped and time.monotonic() < deadline:
        time.sleep(0.002)
    for _ in range(100):
        times.emit(StageEnd, time.monotonic_ns(), 3)
    assert recording._sequence == 2  # one that was heard, one gap
    times.close(time.monotonic_ns())


def test_a_thread_that_cannot_be_started_is_a_failure_like_another(
    cuda: MakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call returns, nothing piles up, and closing still says goodbye."""
    device = cuda()

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    closed: list[int] = []

    class Closing(Recording):
        def close(self, time_ns: int, wait_ms: int | None = None) -> None:
            closed.append(time_ns)

    times = DeviceTimes(Closing(), torch_cuda.CudaDevices(device))
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        times.emit(StageEnd, time.monotonic_ns(), 1)
    assert times.stopped
    times.close(7)
    assert closed == [7]


def test_back_to_the_hosts_times_what_was_on_its_way_never_comes_later(cuda: MakeCuda) -> None:
    """The device's thread ends, and the gap tells of what it did not send."""
    device = cuda()
    with record() as recording:
        with device.stream.stalled():
            token = perseus_hooks.stage_start("forward")
            thread = next(t for t in threading.enumerate() if t.name == "perseus-hooks")
            perseus_hooks.configure(time_source="host")
            perseus_hooks.stage_end(token)
            with perseus_hooks.stage("backward"):
                pass
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
        device.stream.finish()
        events = _stages(recording.events)
    assert recording.hello.time_source == "host"
    assert [type(event) for event in events] == [StageEnd, StageStart, StageEnd]
    assert [event.sequence for event in events] == [2, 3, 4]


def test_a_span_that_is_open_when_cuda_comes_up_leaves_a_gap(cuda: MakeCuda) -> None:
    """It began by the host's clock and ends by the device's: that is no length of anything."""
    with record() as recording:
        with perseus_hooks.stage("iteration"):
            cuda()
            with perseus_hooks.stage("forward"):
                pass
        events = heard(recording, 4)
    assert [event.sequence for event in events] == [1, 3, 4, 5]


def test_a_forked_child_destroys_no_event_of_its_parents(cuda: MakeCuda) -> None:
    """PyTorch's end the process that does, if it may not use the device: a data loader's worker."""
    device = cuda()
    reading, writing = os.pipe()
    with record() as recording, device.stream.stalled():
        hello = recording.hello
        client = perseus_hooks.Client(hello, "", outlet=Recording())
        for _ in range(3):
            with client.stage("forward"):
                pass
        child = os.fork()
        if child == 0:
            del client, recording
            os.write(writing, str(device.destroyed_in.count(os.getpid())).encode())
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(reading, 10) == b"0"
        assert client.stage_start("forward")  # the parent's go on
        client.close()
    os.close(reading)
    os.close(writing)


def test_a_stream_of_ours_on_which_the_training_captures_gets_no_event(cuda: MakeCuda) -> None:
    """PyTorch lends each of its streams several times; asking for a captured event is an error."""
    device = cuda()
    device.capturing_aside = True
    with record() as recording:
        with perseus_hooks.stage("forward"):
            pass
        time.sleep(0.05)
        assert device.recorded == 2  # no mark
        device.capturing_aside = False
        heard(recording, 2)


def test_events_are_recorded_where_something_computes(
    cuda: MakeCuda, caplog: pytest.LogCaptureFixture
) -> None:
    """On `cuda:3` with GPU 0 selected, as before any set_device; never a context for nothing."""
    device = cuda()
    device.contexts = set()
    with caplog.at_level(logging.WARNING, "perseus_hooks"), record() as recording:
        with perseus_hooks.stage("forward"):
            pass
        assert device.recorded == 0
        device.contexts = {3}
        with perseus_hooks.stage("forward"):
            pass
        assert [event.sequence for event in heard(recording, 2)] == [3, 4]
        device.contexts = {3, 4}
        with perseus_hooks.stage("forward"):
            pass
        assert len(_stages(recording.events)) == 2
    assert set(device.recorded_on) == {3}
    assert [r.getMessage() for r in caplog.records] == [torch_cuda._WHICH % [3, 4]]
