"""examples/client.c: the wire from C, against a stand-in daemon, the real one, and none."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from perseus_hooks.events import Goodbye, Hello, Introduce, Refusal, StageEnd, StageStart
from perseus_hooks.wire import encode

from perseusd.emulation.daemon import DaemonProcess, ask

pytestmark = pytest.mark.system  # zmq.h comes with libzmq3-dev

EXAMPLES = Path(__file__).parents[2] / "examples"
FLAGS = ("-std=c11", "-Wall", "-Wextra", "-Werror", "-O2")
PATIENCE_S = 60.0
FOREVER = "1000000"

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, compiled with the command that it gives."""
    built = tmp_path_factory.mktemp("c") / "client"
    command = ["cc", *FLAGS, str(EXAMPLES / "client.c"), "-lzmq", "-o", str(built)]
    subprocess.run(command, check=True)
    return built


@pytest.fixture
def start(program: Path, runtime_dir: str) -> Iterator[Start]:
    """Starts it with PERSEUS_* variables, named without the prefix."""
    started: list[subprocess.Popen[str]] = []

    def start(iterations: str, **variables: object) -> subprocess.Popen[str]:
        environ = {"PATH": os.environ["PATH"], "PERSEUS_RUNTIME_DIR": runtime_dir}
        environ |= {f"PERSEUS_{name}": str(value) for name, value in variables.items()}
        process = subprocess.Popen(
            [str(program), iterations],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ended_well(process: subprocess.Popen[str], iterations: int) -> None:
    output, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, errors) == (0, "")
    assert output.startswith(f"{iterations} iterations, ")


@pytest.mark.parametrize(
    ("said", "place"),
    [
        (
            {"JOB": "c", "RANK": 3},
            {"job": "c", "rank": 3, "replica": None, "replicas": None, "schedule": None},
        ),
        (
            {"JOB": "j" * 40, "RANK": 300, "REPLICA": 200, "REPLICAS": 70000, "SCHEDULE": "gpipe"},
            {"job": "j" * 40, "rank": 300, "replica": 200, "replicas": 70000, "schedule": "gpipe"},
        ),
        (
            {
                "JOB": "ü" * 128,
                "RANK": 255,
                "REPLICA": 128,
                "REPLICAS": 256,
                "GPUS": "0,GPU-8f0a,3",
            },
            {"job": "ü" * 128, "rank": 255, "replica": 128, "replicas": 256, "schedule": None},
        ),
    ],
)
def test_every_byte_is_what_the_reference_makes(
    start: Start, daemon: Any, said: dict[str, Any], place: dict[str, Any]
) -> None:
    """Each message is understood and has exactly the reference's bytes, whatever forms it takes."""
    ended_well(start("20", **said), 20)
    daemon.receive()
    assert [encode(event) for event in daemon.events] == daemon.messages
    gpus = ("index:0", "GPU-8f0a", "index:3") if "GPUS" in said else ()
    assert daemon.events[0] == Hello(
        **place,
        world_size=None,
        local_rank=None,
        stage=0,
        stages=1,
        gpus=gpus,
        time_source="host",
        uses_cuda=False,
        slowdown_budget=None,
        hostname=os.uname().nodename,
    )


def test_events_tell_the_loop(start: Start, daemon: Any) -> None:
    """Starts and ends in the loop's order, numbered without a gap, with rising stamps; a goodbye.

    The first few may be dropped, before there is a connection: it does not wait for one.
    """
    ended_well(start("20"), 20)
    _hello, *events, last = daemon.receive()
    assert isinstance(last, Goodbye)
    assert last.sequence == 2 * 20 * 8 + 1
    numbers = [event.sequence for event in events]
    assert numbers == list(range(numbers[0], last.sequence))
    stamps = [event.time_ns for event in events]
    assert stamps == sorted(set(stamps))
    order = [("forward", m) for m in range(4)] + [("backward", m) for m in range(4)]
    for event in events:
        iteration, position = divmod(event.sequence - 1, 16)
        if isinstance(event, StageStart):
            assert (event.instruction, event.microbatch) == order[position // 2]
            assert (event.iteration, event.stage, event.chunk) == (iteration, None, 0)
            assert event.token == (event.sequence + 1) / 2
        else:
            assert isinstance(event, StageEnd)
            assert event.token == event.sequence / 2


def test_it_introduces_itself_again_when_asked(start: Start, daemon: Any, until: Any) -> None:
    """Answers that it does not know, or that are no msgpack, do not disturb it."""
    start(FOREVER)
    until(lambda: daemon.receive(most=1))
    for data in (b"\x91\xa1z", b"\xc1", b"", b"\x92\xa1r\xd9", b"\xa1i", b"x" * 9000):
        daemon.send_bytes(data)
    daemon.receive(most=20)
    assert sum(isinstance(event, Hello) for event in daemon.events) == 1
    daemon.send_bytes(b"\xdc\x00\x02\xa1i\x01")  # as a later minor version may say it
    until(lambda: any(isinstance(event, Hello) for event in daemon.receive(most=1)))
    daemon.send(Introduce())
    until(lambda: any(isinstance(event, Hello) for event in daemon.receive(most=1)))
    assert len({event for event in daemon.events if isinstance(event, Hello)}) == 1


def test_each_refusal_is_said_once(start: Start, daemon: Any, until: Any) -> None:
    """With code and reason, and it goes on; however many come."""
    process = start(FOREVER)
    until(lambda: daemon.receive(most=1))
    for number in (1, 2, 1, 1, 2):
        daemon.send(Refusal("gpu_held", f"reason {number} — {'x' * 200}"))
    for number in range(100):
        daemon.send(Refusal("malformed", f"flood {number}"))
    daemon.send(Introduce())
    until(lambda: any(isinstance(event, Hello) for event in daemon.receive(most=9)))
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=PATIENCE_S)[1].splitlines()
    assert len(said) == len(set(said)) == 8
    assert said[0].startswith("perseusd does not accept this process: gpu_held: reason 1 — xxx")
    assert said[1].startswith("perseusd does not accept this process: gpu_held: reason 2 — xxx")


def test_without_a_daemon_it_ends_well(start: Start, daemon_class: Any, runtime_dir: str) -> None:
    """No socket, no folder, hooks switched off, a socket that nobody serves: training goes on."""
    ended_well(start("3"), 3)
    ended_well(start("3", RUNTIME_DIR="/nonexistent/" + "x" * 300), 3)
    daemon_class(runtime_dir).stop()
    Path(runtime_dir, "hooks.sock").touch()
    ended_well(start("3"), 3)


def test_a_stopped_daemon_stops_nobody(start: Start, scripts: Any) -> None:
    """Under SIGSTOP nothing is taken: everything is dropped, and the exit is clean."""
    scripts.peer().send_signal(signal.SIGSTOP)
    ended_well(start("10"), 10)


def test_switched_off_it_is_silent(start: Start, daemon: Any) -> None:
    """PERSEUS_ENABLED=0, or in words: nothing is sent."""
    ended_well(start("3", ENABLED=0), 3)
    ended_well(start("3", ENABLED="False"), 3)
    assert daemon.receive() == []


def test_a_daemon_that_comes_later_is_told(
    start: Start, daemon_class: Any, runtime_dir: str, until: Any
) -> None:
    """Each daemon hears a hello first, and the numbers tell what it has missed."""
    start(FOREVER)
    seen = 0
    for _ in range(2):
        daemon = daemon_class(runtime_dir)
        try:
            until(lambda daemon=daemon: daemon.receive(0.01, most=1) and len(daemon.events) > 8)
            assert isinstance(daemon.events[0], Hello)
            assert daemon.events[1].sequence > seen
            seen = daemon.events[-1].sequence
        finally:
            daemon.stop()


def test_the_real_daemon_understands_a_pipeline_of_two(
    start: Start, runtime_dir: str, until: Any
) -> None:
    """Ranks, stages and the order are understood, iterations advance, and the end is seen."""
    with DaemonProcess(Path(runtime_dir), 2):

        def status() -> Any:
            return ask(Path(runtime_dir, "status.sock"), {"command": "status"}, timeout_s=20)

        def job() -> Any:
            return next((job for job in status()["jobs"] if job["id"].endswith(":c")), None)

        def understood() -> Any:
            found = job()
            return found and found["critical_path"] and found["iteration_time_s"] and found

        ranks = [
            start("1000", JOB="c", STAGES=2, STAGE=stage, RANK=stage, GPUS=stage)
            for stage in range(2)
        ]
        found = until(understood)
        assert (found["ranks"], found["expected_ranks"], found["missing_ranks"]) == (2, 2, [])
        assert found["iteration_time_s"] > 0
        assert [slack["stage"] for slack in found["slack"]] == [0, 1]
        until(lambda: job()["iteration"] > found["iteration"] + 3)
        assert status()["daemon"]["refused"] == []
        for rank in ranks:
            rank.terminate()
        until(lambda: job() is None)
