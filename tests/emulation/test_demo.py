"""The demo's orchestration, with a stand-in for the daemon: what it does with any daemon's answers.

The real daemon in the loop is tested end to end elsewhere.
"""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from perseusd.emulation import demo
from perseusd.emulation.coordinator import Straggler
from perseusd.emulation.demo import DemoOptions, bounds_of, run_demo
from perseusd.emulation.progress import Lines, Panels, Snapshot, StageReading
from perseusd.emulation.workloads import Workload
from perseusd.errors import DaemonUnreachableError, PerseusError, UsageError
from perseusd.gpus.simulated import open_node

LOWERED_MHZ = 1200
HOLD_FROM_S = 1.5


class StandIn:
    """A daemon that lowers all clocks after a while, and raises them when it stops."""

    made: StandIn | None = None
    fails = ""
    listed_s = (0.0, 0.0)

    def __init__(self, runtime_dir: Path, gpus: int) -> None:
        self.requests: list[Mapping[str, Any]] = []
        self._gpus = open_node(runtime_dir / "simulated-gpus").gpus
        self._start_s = time.monotonic()
        self._held = False
        StandIn.made = self

    def __enter__(self) -> StandIn:
        return self

    def __exit__(self, *_: object) -> None:
        if self._held and self.fails != "leaves clocks locked":
            for gpu in self._gpus:
                gpu.reset_clock()

    def check(self) -> None:
        if self.fails == "dies" and self._held:
            raise PerseusError("perseusd ended with status 1")

    def control(self, request: Mapping[str, Any]) -> None:
        self.requests.append(request)
        if self.fails == "refuses":
            raise PerseusError("refused")

    def status(self) -> dict[str, Any]:
        if self.fails == "is slow now and then" and int(time.monotonic() * 10) % 2:
            raise DaemonUnreachableError("no answer in time")
        if time.monotonic() - self._start_s < HOLD_FROM_S:
            return {"jobs": []}
        if not self._held:
            self._held = True
            for gpu in self._gpus:
                gpu.lock_clock(LOWERED_MHZ)
        states = [{"state": "baseline", "since_iteration": 0}]
        states.append({"state": "hold", "since_iteration": 6})
        clocks = [[LOWERED_MHZ] * 8] * 3
        job = {"id": "someone:demo", "state": "hold", "states": states, "plan": {"clocks": clocks}}
        since_s, until_s = self.listed_s
        if since_s <= time.monotonic() - self._start_s < until_s:
            job["stragglers"] = [{"replica": None, "factor": 1.3, "cause": "announced"}]
        return {"jobs": [{"id": "another"}, job]}


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[StandIn]]:
    monkeypatch.setattr(demo, "DaemonProcess", StandIn)
    monkeypatch.setattr(StandIn, "fails", "")
    yield StandIn
    assert not psutil.Process().children(recursive=True), "a process was left behind"


def run(small: Workload, **options: Any) -> tuple[demo.DemoReport, str]:
    words = io.StringIO()
    chosen = {"workload": small, "microbatches": 4, "seconds": 5.0, "noise": 0.0} | options
    return run_demo(DemoOptions(**chosen), Lines(words)), words.getvalue()


def test_a_demo_from_beginning_to_end(small: Workload, tmp_path: Path) -> None:
    """States by the daemon's word, energy by the GPUs' counters, a picture, lines that say so."""
    picture = tmp_path / "demo.svg"
    found, words = run(small, picture=picture)
    assert [p.state for p in found.phases] == ["baseline", "hold"]
    assert found.saving is not None
    assert 0.02 < found.saving < 0.3
    assert found.slowdown is not None
    assert 0.05 < found.slowdown < 0.2
    assert found.learning_iterations == 6
    assert found.bound_saving is not None
    assert found.bound_saving_writes is not None
    assert 0 <= found.bound_saving_writes <= found.bound_saving
    assert found.bound_saving_as_run is not None
    assert found.bound_saving <= found.bound_saving_as_run
    assert "emulated" in picture.read_text()
    assert words.startswith("[emulated]")
    assert "state hold" in words


def test_a_straggler_is_announced_and_its_end_too(
    small: Workload, stand_in: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the control socket, with its factor; a refusal does not stop the demo."""
    monkeypatch.setattr(stand_in, "fails", "refuses")
    found, words = run(small, straggler=Straggler(1.5, 3, 5))
    assert stand_in.made is not None
    assert stand_in.made.requests == [
        {"command": "straggler_announce", "job": "demo", "factor": 1.5},
        {"command": "straggler_end", "job": "demo"},
    ]
    assert found.straggler is not None
    assert found.straggler.onset_iteration == 3
    assert "straggler" in words


def test_somebody_else_s_straggler_is_left_out(
    small: Workload, stand_in: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Iterations during which the daemon lists a straggler are a row of their own, and no more."""
    monkeypatch.setattr(stand_in, "listed_s", (3.5, 4.2))
    found, words = run(small, seconds=7.0)
    labels = [(p.state, p.straggler) for p in found.phases]
    assert labels == [("baseline", False), ("hold", False), ("hold", True), ("hold", False)]
    assert found.straggler is None
    assert found.saving is not None
    assert "straggler" in words


@pytest.mark.parametrize(
    ("option", "path", "named"),
    [
        ("picture", Path("/nonexistent/x.svg"), "--picture /nonexistent/x.svg"),
        ("picture", Path("/proc"), "--picture /proc"),
        ("runtime_dir", Path("/proc/perseus"), "--runtime-dir /proc/perseus"),
        ("runtime_dir", Path("/dev/null/x"), "--runtime-dir /dev/null/x"),
    ],
)
def test_a_place_that_cannot_be_written_is_named_at_once(
    small: Workload, option: str, path: Path, named: str
) -> None:
    """A usage error with path and fix, before anything is started."""
    StandIn.made = None
    with pytest.raises(UsageError, match=f"{named}: cannot .*: give a"):
        run(small, **{option: path})
    assert StandIn.made is None


def test_checking_the_picture_s_place_leaves_nothing(tmp_path: Path) -> None:
    """A picture that is there is not touched, and none is made before it is drawn."""
    there = tmp_path / "there.svg"
    there.write_text("as it was")
    demo._check_picture(there)
    demo._check_picture(tmp_path / "new.svg")
    assert [p.name for p in tmp_path.iterdir()] == ["there.svg"]
    assert there.read_text() == "as it was"


@pytest.mark.parametrize(
    ("fails", "words"),
    [("dies", "ended with status 1"), ("leaves clocks locked", "GPU 0, 1, 2 locked")],
)
def test_a_failing_daemon_is_an_error(
    small: Workload,
    stand_in: type[StandIn],
    monkeypatch: pytest.MonkeyPatch,
    fails: str,
    words: str,
) -> None:
    """Told plainly, and everything is stopped (the fixture looks for processes left behind)."""
    monkeypatch.setattr(stand_in, "fails", fails)
    with pytest.raises(PerseusError, match=words):
        run(small, seconds=3.0)


def test_a_daemon_that_misses_an_answer_is_asked_again(
    small: Workload, stand_in: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine an answer may be late: the demo goes on."""
    monkeypatch.setattr(stand_in, "fails", "is slow now and then")
    assert run(small, seconds=4.0)[0].saving is not None


def test_a_dying_training_process_is_an_error(small: Workload) -> None:
    """The demo ends with the stage's name instead of waiting for ever."""

    class Killer(Lines):
        def show(self, snapshot: Snapshot) -> None:
            if snapshot.iteration == 2:
                os.kill(psutil.Process().children()[0].pid, signal.SIGKILL)

    options = DemoOptions(small, 4, seconds=10.0, noise=0.0)
    with pytest.raises(PerseusError, match=r"stage \d .* died"):
        run_demo(options, Killer(io.StringIO()))


def test_ctrl_c_leaves_nothing_running(small: Workload) -> None:
    """The interrupt goes on to the caller; processes and clocks are as before."""

    class Interrupted(Lines):
        def show(self, snapshot: Snapshot) -> None:
            if snapshot.iteration == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_demo(DemoOptions(small, 4, seconds=10.0), Interrupted(io.StringIO()))


def test_a_directory_in_use_is_refused(small: Workload, tmp_path: Path) -> None:
    """GPUs that another daemon may be using are never replaced."""
    (tmp_path / "simulated-gpus").touch()
    with pytest.raises(UsageError, match="new directory"):
        run(small, runtime_dir=tmp_path)


def test_bounds_agree_with_the_plan_s_freedom(small: Workload) -> None:
    """A plan with no clock change at all bounds what fewer writes can save; free ones save more."""
    free = bounds_of(small, 4, None)
    assert free.saving_writes is None
    assert 0 < free.saving < 1


def test_the_panel_names_what_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal: state, power, saving, each stage's clock, and the word "emulated"."""
    monkeypatch.setenv("TERM", "xterm-256color")
    words = io.StringIO()
    console = Console(file=words, force_terminal=True, width=100)
    with Panels(console, "small on 2 × a100-sxm", 400.0) as panels:
        stages = [StageReading(1065, 1065, 280.0), StageReading(1410, None, 400.0)]
        snapshot = Snapshot(10, 60, "hold", 12, 2.85, 2000.0, 0.12, 0.001, stages=stages)
        panels.show(snapshot)
    for expected in ("emulated", "hold", "2000 W", "12.0 %", "1065 MHz", "full clock"):
        assert expected in words.getvalue()
