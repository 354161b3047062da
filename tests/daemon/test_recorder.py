"""Recording a running daemon over its real socket: `perseusctl record`, and other clients."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from perseusd.core.settings import Settings
from perseusd.daemon.recorder import Recorder
from perseusd.traces.reading import read_trace
from perseusd.traces.recording import Header, Input, Reader, read_recording
from perseusd.traces.replay import RecordedController

Rigs = Callable[..., Any]


def command(rig: Any, *arguments: str) -> list[str]:
    start = [
        sys.executable,
        "-c",
        "import sys; from perseusd.ctl.main import main; sys.exit(main())",
    ]
    return [*start, "--runtime-dir", str(rig.folder), *arguments]


def perseusctl(rig: Any, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(rig, *arguments), capture_output=True, text=True, timeout=60, check=False
    )


def recording(rig: Any, *arguments: str) -> subprocess.Popen[str]:
    """`perseusctl record`, left to run."""
    return subprocess.Popen(
        command(rig, "record", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Listener:
    """Asks for a recording as any client in any language would."""

    def __init__(self, folder: Path, batches: int = 1000) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.RCVHWM, batches)
        self.socket.connect(f"ipc://{folder}/record.sock")
        self.reader = Reader()
        self.inputs: list[Input] = []

    def ask(self, request: object) -> None:
        self.socket.send(json.dumps(request).encode())

    def hear(self, patience_s: float = 5.0) -> bytes:
        assert self.socket.poll(int(patience_s * 1000)), "the daemon said nothing"
        return self.socket.recv()

    def listen(self, until: Callable[[], bool], patience_s: float = 20.0) -> None:
        deadline = time.monotonic() + patience_s
        while not until():
            assert time.monotonic() < deadline, "waited in vain"
            self.inputs += self.reader.feed(self.hear())

    def heard(self, name: str) -> list[Input]:
        return [told for told in self.inputs if told.name == name]

    def close(self) -> None:
        self._context.destroy(linger=0)


@pytest.fixture
def make_listener() -> Iterator[Callable[..., Listener]]:
    made: list[Listener] = []

    def make(*arguments: Any) -> Listener:
        made.append(Listener(*arguments))
        return made[-1]

    yield make
    for listener in made:
        listener.close()


def test_a_job_is_recorded_and_analysed(make_rig: Rigs, helpers: Any, tmp_path: Path) -> None:
    """From the daemon's start on, as many iterations as asked for, into a file that analyze reads:
    the job with its four stages, each with its share of the path, and nobody slow for long."""
    rig = make_rig()
    rig.start()
    output = tmp_path / "x.recording"
    recorder = recording(rig, "--iterations", "8", "--output", str(output), "--json")
    helpers.until(lambda: output.exists() and output.stat().st_size > 0)
    rig.start_job()
    out, err = recorder.communicate(timeout=60)
    assert (recorder.returncode, err) == (0, "")
    told = json.loads(out)
    assert told["iterations"] >= 8
    assert told["bytes"] == output.stat().st_size
    assert [job["id"].split(":")[1] for job in told["jobs"]] == ["tiny"]
    assert told["dropped"] == 0
    header, inputs = read_recording(output)
    assert header.complete
    assert header.emulated
    names = {told.name for told in inputs}
    assert {"hello", "stage_event", "energy", "gpu_state", "tick"} <= names
    analysed = perseusctl(rig, "analyze", str(output), "--json")
    verdict = json.loads(analysed.stdout)
    assert analysed.returncode == 0
    assert verdict["iterations"] >= 8
    assert [s for s in verdict["stragglers"] if not s["transient"]] == []
    shares = verdict["critical_path_share"]
    assert {(place["replica"], place["stage"]) for place in shares} == {(0, s) for s in range(4)}
    assert sum(place["share"] for place in shares) == pytest.approx(1, abs=0.001)
    shown = perseusctl(rig, "analyze", str(output))
    assert "Critical path" in shown.stdout


def test_recording_begun_while_a_plan_is_held(
    rig: Any, helpers: Any, make_listener: Callable[..., Listener]
) -> None:
    """Who asks late gets the header, the hellos of all who are there and the clocks that are
    lowered, and then what comes; the daemon goes on meanwhile. Once nobody listens, nothing
    is sent."""
    rig.hold()
    listener = make_listener(rig.folder)
    listener.ask({"command": "record"})
    listener.listen(lambda: len(listener.heard("stage_event")) > 200)
    header = listener.reader.header
    assert isinstance(header, Header)
    assert not header.complete
    assert [told.name for told in listener.inputs[:4]] == ["hello"] * 4
    assert {told.arguments[2].stage for told in listener.heard("hello")} == {0, 1, 2, 3}
    assert any(told.arguments[1] is not None for told in listener.heard("written"))
    listener.ask({"command": "stop"})
    deadline = time.monotonic() + 10
    while listener.socket.poll(300):  # what was on its way
        listener.hear()
        assert time.monotonic() < deadline, "it did not stop sending"


def test_one_jobs_recording_holds_nothing_of_others(
    rig: Any, helpers: Any, make_peer: Any, tmp_path: Path
) -> None:
    """With --job, another process's hello and events, and its GPUs' readings, are left out."""
    rig.hold()
    output = tmp_path / "one.recording"
    recorder = recording(rig, "--job", "tiny", "--seconds", "3", "--output", str(output))
    helpers.until(output.exists)
    peer = make_peer(rig)
    peer.send(helpers.hello("other"))
    peer.hear()
    for sequence in range(1, 100, 2):
        peer.send(helpers.start(sequence), helpers.end(sequence + 1, sequence))
    out, err = recorder.communicate(timeout=30)
    assert (recorder.returncode, err) == (0, "")
    assert ":tiny" in out
    assert ":other" not in out
    inputs = list(read_recording(output)[1])
    jobs = {told.arguments[2].job for told in inputs if told.name == "hello"}
    clients = {told.arguments[0] for told in inputs if told.name == "stage_event"}
    assert jobs == {"tiny"}
    assert len(clients) == 4


def test_an_interrupted_recording_is_whole(rig: Any, helpers: Any, tmp_path: Path) -> None:
    """Ctrl-C ends it with what was recorded told, exit code 0, and a file that can be read."""
    rig.hold()
    output = tmp_path / "interrupted.recording"
    recorder = recording(rig, "--output", str(output))
    helpers.until(lambda: output.exists() and output.stat().st_size > 20_000)
    recorder.send_signal(signal.SIGINT)
    out, err = recorder.communicate(timeout=20)
    assert recorder.returncode == 0
    assert err == f"perseusctl: recording into {output} until Ctrl-C\n"
    assert str(output) in out
    assert len(list(read_recording(output)[1])) > 100


def test_a_file_that_is_there_is_left_alone(rig: Any, tmp_path: Path) -> None:
    """A recording never overwrites; a folder that is not there is told."""
    rig.hold()
    output = tmp_path / "there"
    output.write_text("precious")
    refused = perseusctl(rig, "record", "--output", str(output), "--seconds", "1")
    assert (refused.returncode, output.read_text()) == (2, "precious")
    assert "there already" in refused.stderr
    refused = perseusctl(rig, "record", "--output", str(tmp_path / "no" / "x"), "--seconds", "1")
    assert refused.returncode == 2
    assert "cannot be written" in refused.stderr


def test_a_full_disk_is_told(rig: Any) -> None:
    """Where nothing more can be written: exit code 1 and the reason; the daemon does not care."""
    if not os.path.exists("/dev/full"):
        pytest.skip("this machine has no /dev/full")
    rig.hold()
    code = (
        "import sys; import perseusd.ctl.record.command as c;"
        "c._created = lambda path: open('/dev/full', 'wb', buffering=0);"
        "from perseusd.ctl.main import main; sys.exit(main())"
    )
    refused = subprocess.run(
        [sys.executable, "-c", code, "--runtime-dir", str(rig.folder), "record", "--seconds", "5"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused.returncode == 1
    assert "No space left on device" in refused.stderr
    assert rig.state() is not None


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """A recorder of its own over a real socket, with room for some batches only."""
    monkeypatch.setattr("perseusd.daemon.recorder.KEPT_BATCHES", 32)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    controller = RecordedController(Settings(), {})
    recorder = Recorder(context, tmp_path / "record.sock", controller, True, dict)
    yield recorder
    recorder.close()
    context.destroy(linger=0)


def begin(recorder: Recorder, listener: Listener) -> None:
    listener.ask({"command": "record"})
    assert recorder.socket.poll(5000)
    recorder.hear()
    listener.listen(lambda: listener.reader.header is not None)


def test_who_does_not_keep_up_is_told_what_it_lost(
    made: Recorder, tmp_path: Path, make_listener: Callable[..., Listener]
) -> None:
    """A listener that takes nothing for a while loses whole batches, and then is told how many
    inputs they held: those it has and those it is told of are all there were. One that takes them
    loses none meanwhile."""
    slow, quick = make_listener(tmp_path, 1), make_listener(tmp_path)
    for listener in (slow, quick):
        begin(made, listener)
    told = 0

    def has_all() -> bool:
        return len(quick.heard("release_all")) == told

    while told < 1000:
        for _ in range(5):
            made.controller.release_all("x" * 20_000)
            told += 1
        made.flush(now=True)
        quick.listen(has_all)
    assert quick.heard("dropped") == []
    while slow.socket.poll(200):
        slow.inputs += slow.reader.feed(slow.hear())
    made.controller.tick(1)
    made.flush(now=True)
    slow.listen(lambda: bool(slow.heard("tick")))
    (dropped,) = slow.heard("dropped")
    assert dropped.arguments[0] > 0
    assert len(slow.heard("release_all")) + dropped.arguments[0] == told


def test_who_goes_away_is_forgotten(
    made: Recorder, tmp_path: Path, make_listener: Callable[..., Listener], helpers: Any
) -> None:
    """A listener that dies without a word is noticed at the next batch, and then nothing is
    recorded any more."""
    listener = make_listener(tmp_path)
    begin(made, listener)
    assert made.controller.sink is not None
    listener.close()

    def is_forgotten() -> bool:
        made.controller.tick(1)
        made.flush(now=True)
        return made.controller.sink is None

    helpers.until(is_forgotten, 10)


def test_requests_that_are_none_are_answered(
    rig: Any, make_listener: Callable[..., Listener]
) -> None:
    """Garbage and unknown commands get a reason; more listeners than there may be are refused,
    and those who listen already go on."""
    rig.hold()
    listener = make_listener(rig.folder)
    for request in ({"command": "dance"}, [], 7, None):
        listener.ask(request)
        assert json.loads(listener.hear())["code"] == "bad_request"
    listener.socket.send(b"\xff\xfe")
    assert json.loads(listener.hear())["code"] == "bad_request"
    others = [make_listener(rig.folder) for _ in range(3)]
    for other in others:
        other.ask({"command": "record"})
        assert other.hear().startswith(b"perseusd recording")
    listener.ask({"command": "record"})
    assert json.loads(listener.hear())["code"] == "too_many"
    refused = perseusctl(rig, "record", "--seconds", "1", "--output", str(rig.folder / "none"))
    assert refused.returncode == 1
    assert "3 recordings of this user are being made already" in refused.stderr
    assert not (rig.folder / "none").exists()


def test_a_daemon_that_stops_ends_the_recording(
    make_rig: Rigs, helpers: Any, tmp_path: Path
) -> None:
    """Stopped or killed: what there is is kept and told, with the exit code of a daemon that cannot
    be reached; without a daemon there is no file at all."""
    rig = make_rig()
    for number, end in enumerate((signal.SIGTERM, signal.SIGKILL)):
        rig.start()
        output = tmp_path / f"{number}.recording"
        recorder = recording(rig, "--output", str(output))
        helpers.until(lambda path=output: path.exists() and path.stat().st_size > 6000)
        rig.daemon.send_signal(end)
        out, err = recorder.communicate(timeout=30)
        rig.daemon.wait(20)
        assert recorder.returncode == 69
        assert str(output) in out
        assert "record.sock" in err
        assert len(list(read_recording(output)[1])) > 10
        helpers.until(lambda: not rig.left_behind())
    refused = perseusctl(rig, "record", "--output", str(tmp_path / "none"))
    assert refused.returncode == 69
    assert not (tmp_path / "none").exists()


def test_a_cut_recording_of_a_daemon_is_analysed(rig: Any, tmp_path: Path) -> None:
    """A file whose last second is missing is read up to there."""
    rig.hold()
    output = tmp_path / "x"
    done = perseusctl(rig, "record", "--iterations", "5", "--output", str(output))
    assert done.returncode == 0
    data = output.read_bytes()
    output.write_bytes(data[: len(data) * 3 // 4 + 1])
    (run,) = read_trace(output).runs
    assert 1 <= len(run.observations) <= 6


@pytest.mark.parametrize(
    "arguments", [("--seconds", "0"), ("--seconds", "nan"), ("--iterations", "0")]
)
def test_limits_that_make_no_sense_are_refused(
    arguments: tuple[str, str], make_rig: Rigs, tmp_path: Path
) -> None:
    """Before anything is asked of anybody."""
    refused = perseusctl(make_rig(), "record", *arguments)
    assert refused.returncode == 2
    assert arguments[0] in refused.stderr
