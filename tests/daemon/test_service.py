"""The daemon as a process: starting beside another, status and control, observing, stopping."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import pytest
from perseus_hooks.events import Introduce, Refusal, Welcome
from perseus_hooks.wire import encode

from perseusd.config import Config, Sources, load_config
from perseusd.daemon.beginning import only_one
from perseusd.daemon.reload import Reloader
from perseusd.daemon.service import Service
from perseusd.errors import ConfigurationError
from perseusd.gpus.simulated import Fault

Types = Mapping[str, object]

NUMBER = (int, float)
MAYBE = (int, float, type(None))

DAEMON: Types = {
    "version": str,
    "uptime_s": NUMBER,
    "mode": str,
    "clock_process": str,
    "emulated": bool,
    "gpu_use_unknown": type(None),
    "configuration": dict,
    "refused": list,
}
GPU: Types = {
    "uuid": str,
    "name": str,
    "clock_mhz": int,
    "requested_mhz": (int, type(None)),
    "power_w": NUMBER,
    "energy_j": NUMBER,
    "holder": str,
    "state": str,
    "reasons": list,
    "follows_request": (str, type(None)),
    "emulated": bool,
    "mig": bool,
}
JOB: Types = {
    "id": str,
    "replica": int,
    "state": str,
    "ranks": int,
    "expected_ranks": int,
    "missing_ranks": list,
    "iteration": int,
    "iteration_time_s": NUMBER,
    "deadline_s": NUMBER,
    "critical_path": list,
    "slack": list,
    "stragglers": list,
    "straggler_history": list,
    "straggler_to_come": (dict, type(None)),
    "saving": MAYBE,
    "saving_low": MAYBE,
    "saving_high": MAYBE,
    "slowdown": MAYBE,
    "slowdown_low": MAYBE,
    "slowdown_high": MAYBE,
    "energy_saved_j": NUMBER,
    "energy_saved_j_low": MAYBE,
    "energy_saved_j_high": MAYBE,
    "reference_iterations": int,
    "reference_cost": MAYBE,
    "predicted_saving": (dict, type(None)),
    "no_prediction": (str, type(None)),
    "learning": dict,
    "why": str,
    "why_code": (str, type(None)),
    "time_source": str,
    "states": list,
    "plan": dict,
}


def has(value: Mapping[str, Any], types: Types) -> None:
    for key, wanted in types.items():
        assert key in value
        assert isinstance(value[key], wanted), (key, value[key])  # type: ignore[arg-type]


def finished(rig, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = rig.command(*arguments)
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def perseusctl(rig, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = "import sys; from perseusd.ctl.main import main; sys.exit(main())"
    command = [sys.executable, "-c", program, *arguments, "--runtime-dir", str(rig.folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


# -- one daemon, one job ---------------------------------------------------------------------------


@pytest.fixture
def held(rig):
    """In hold, clocks lowered at this moment."""
    rig.hold()
    return rig


def test_status_follows_its_contract(held, helpers) -> None:
    """Every promised key, its type, and values that agree with each other and with the GPUs."""
    status = held.status()
    assert status["schema_version"] == 1
    has(status["daemon"], DAEMON)
    assert (status["daemon"]["mode"], status["daemon"]["clock_process"]) == ("act", "alive")
    assert len(status["gpus"]) == helpers.STAGES
    job = held.job_status()
    has(job, JOB)
    for gpu, own in zip(status["gpus"], held.node.gpus, strict=True):
        has(gpu, GPU)
        assert gpu["uuid"] == own.info.uuid
        assert gpu["holder"] == job["id"]
        assert gpu["state"] == "ok"
    assert (job["ranks"], job["expected_ranks"], job["missing_ranks"]) == (4, 4, [])
    names = [entry["state"] for entry in job["states"]]
    assert names[:3] == ["baseline", "learn", "hold"]
    assert sum(part["share"] for part in job["critical_path"]) == pytest.approx(1, abs=0.01)
    assert [len(clocks) for clocks in job["plan"]["clocks"]] == [8] * helpers.STAGES
    assert [part["stage"] for part in job["slack"]] == list(range(helpers.STAGES))
    assert job["learning"]["lowest_mhz"] < 1410
    assert job["predicted_saving"] is None, "what acting saves is measured, not predicted"
    helpers.until(lambda: any(g["requested_mhz"] for g in held.status()["gpus"]))


def test_perseusctl_prints_the_same_object(held) -> None:
    """`perseusctl status --json` is the daemon's answer, and nothing else."""
    shown = perseusctl(held, "status", "--json")
    assert shown.returncode == 0
    assert set(json.loads(shown.stdout)) == set(held.status())


@pytest.mark.parametrize(
    ("request_", "code", "error"),
    [
        ({"command": "explode"}, "bad_request", "unknown command 'explode': known are"),
        ({}, "bad_request", "unknown command None"),
        ([], "bad_request", "unknown command"),
        ("straggler_end", "bad_request", "unknown command"),
        ({"command": ["straggler_end"]}, "bad_request", "unknown command"),
        ({"command": "straggler_announce", "job": "tiny"}, "bad_request", "factor None"),
        (
            {"command": "straggler_announce", "job": "tiny", "factor": 0.5},
            "bad_request",
            "factor 0.5: give how many times longer",
        ),
        (
            {"command": "straggler_announce", "job": "tiny", "factor": True},
            "bad_request",
            "factor True",
        ),
        (
            {"command": "straggler_announce", "job": "tiny", "factor": 10**400},
            "bad_request",
            "from 1 to 100",
        ),
        (
            {"command": "straggler_announce", "job": "tiny", "factor": float("nan")},
            "bad_request",
            "factor nan",
        ),
        (
            {"command": "straggler_announce", "job": "ghost", "factor": 1.2},
            "unknown_job",
            "no job 'ghost' here: running are",
        ),
        (
            {"command": "straggler_announce", "job": "tiny", "factor": 1.2, "in_s": -1},
            "bad_request",
            "in_s -1: give in how many seconds it begins, from 0 to 86400",
        ),
        (
            {"command": "straggler_announce", "job": "tiny", "factor": 1.2, "in_s": "soon"},
            "bad_request",
            "in_s 'soon'",
        ),
        (
            {"command": "straggler_announce", "job": "tiny", "factor": 1.2, "in_s": True},
            "bad_request",
            "in_s True",
        ),
        (
            {"command": "straggler_announce", "job": "tiny", "factor": 1.2, "in_s": 10**400},
            "bad_request",
            "from 0 to 86400",
        ),
        ({"command": "straggler_end", "job": None}, "unknown_job", "no job 'None'"),
    ],
)
def test_control_refuses_what_it_does_not_understand(held, request_, code, error) -> None:
    """The answer names the value and what would do; the daemon and its job go on."""
    answer = held.control(request_)
    assert answer["ok"] is False
    assert answer["code"] == code
    assert error in answer["error"]
    assert held.announced() == []


def test_an_announced_straggler_moves_the_deadline_and_back(held, helpers) -> None:
    """Announced for the job by its short name: deadline and plan follow, and return at the end."""
    own_s = held.job_status()["deadline_s"]
    assert held.control({"command": "straggler_announce", "job": "tiny", "factor": 1.3})["ok"]
    job = held.job_status()
    assert held.announced()[0]["factor"] == 1.3
    assert job["deadline_s"] > 1.1 * own_s
    ended = {"command": "straggler_end", "job": job["id"]}
    assert held.control(ended) == {"ok": True, "changed": True}
    assert held.control(ended) == {"ok": True, "changed": False}
    assert held.announced() == []
    assert held.job_status()["deadline_s"] == pytest.approx(own_s, rel=0.05)


def test_a_straggler_announced_beforehand_begins_when_said(held, helpers) -> None:
    """Until then it is to come, and the deadline is the job's own; an end takes it back."""
    announced = {"command": "straggler_announce", "job": "tiny", "factor": 1.3}
    assert held.control(announced | {"in_s": 1.5})["ok"]
    job = held.job_status()
    assert held.announced() == []
    assert job["straggler_to_come"]["factor"] == 1.3
    assert 0 < job["straggler_to_come"]["starts_in_s"] <= 1.5
    helpers.until(held.announced)
    assert held.job_status()["straggler_to_come"] is None
    assert held.control({"command": "straggler_end", "job": "tiny"})["ok"]
    assert held.control(announced | {"in_s": 1000})["ok"]
    assert held.control({"command": "straggler_end", "job": "tiny"})["changed"]
    assert (held.announced(), held.job_status()["straggler_to_come"]) == ([], None)


def test_gpus_are_seen_to_follow_their_clocks(held, helpers) -> None:
    """Readings of lowered clocks agree with what was asked; few can be compared, none disagree."""

    def follows() -> set[str | None]:
        return {gpu["follows_request"] for gpu in held.status()["gpus"]}

    helpers.until(lambda: "yes" in follows(), poll_s=0.1)
    assert follows() <= {"yes", None}


def test_a_killed_planner_is_replaced(held, helpers) -> None:
    """kill -9 of the planner process during hold: hold goes on, and the next plan is made."""
    before, planner = held.job_status(), held.children()["perseusd.daemon.planner_process"]
    os.kill(planner, signal.SIGKILL)
    helpers.until(
        lambda: held.children().get("perseusd.daemon.planner_process", planner) != planner
    )
    helpers.until(lambda: held.job_status()["iteration"] >= before["iteration"] + 3)
    assert held.job_status()["states"] == before["states"]
    plan = held.job_status()["plan"]
    held.control({"command": "straggler_announce", "job": "tiny", "factor": 1.5})
    helpers.until(lambda: held.job_status()["plan"] != plan)
    held.control({"command": "straggler_end", "job": "tiny"})


def test_a_second_daemon_is_refused(held) -> None:
    """Exit 78, naming the first one's process; the first one goes on undisturbed."""
    second = finished(held)
    assert second.returncode == 78
    assert f"process {held.daemon.pid}" in second.stderr
    assert "--runtime-dir" in second.stderr
    assert "Traceback" not in second.stderr
    assert held.job_status()["state"] == "hold"


_HOLDER = """
import resource, sys
from pathlib import Path
from perseusd.config import Config
from perseusd.daemon.beginning import only_one
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
with only_one(Config(Path(sys.argv[1]), Path(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_full_disk_keeps_no_daemon_from_starting(tmp_path) -> None:
    """Its lock cannot name it, and holds all the same."""
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(ConfigurationError, match="process unknown"),
            only_one(Config(tmp_path, tmp_path)),
        ):
            pass
        holder.communicate(b"")
    assert holder.returncode == 0


def test_a_start_after_a_kill_is_not_hindered_by_what_was_left(held, helpers) -> None:
    """Sockets and lock file of a killed daemon lie about; the next one serves the same job.

    What the dead one's GPUs are simulated in still says how many there are: another number is
    refused with both numbers named.
    """
    held.daemon.kill()
    held.daemon.wait()
    for name in ("hooks", "status", "control"):
        assert (held.folder / f"{name}.sock").exists()
    held.gpus += 1
    wrong = finished(held)
    held.gpus -= 1
    assert wrong.returncode == 78
    assert "--simulate 5" in wrong.stderr
    assert "holds 4 GPUs" in wrong.stderr
    held.start()
    helpers.until(lambda: held.state() == "hold", poll_s=0.05)


def test_a_stop_while_a_gpu_hangs_is_bounded(held, helpers) -> None:
    """SIGTERM with a driver call that never returns: the other clocks are full at once.

    The daemon and its clock process end within seconds, and the next start restores the rest.
    """
    gpu = held.node.gpus[1]
    helpers.until(lambda: gpu.locked_mhz() is not None)
    gpu.set_fault(Fault.HANG)
    try:
        began_s = time.monotonic()
        held.daemon.terminate()
        others = [g for g in held.node.gpus if g is not gpu]
        helpers.until(lambda: all(g.locked_mhz() is None for g in others), 1)
        held.daemon.wait(10)
        helpers.until(lambda: not held.left_behind(), 10)
        assert time.monotonic() - began_s < 10
    finally:
        gpu.set_fault(Fault.NONE)
    held.start()  # what could not be put back is now
    helpers.until(lambda: gpu.locked_mhz() is None, 5)


def test_a_failing_gpu_has_its_job_released_and_named(held, helpers) -> None:
    """Its driver refuses: full clocks for the job, the reason in words, and `perseusctl doctor`."""
    gpu = held.node.gpus[2]
    gpu.set_fault(Fault.FAIL)
    try:
        job = helpers.until(lambda: (j := held.job_status())["state"] == "release" and j)
        assert gpu.info.uuid in job["why"]
        others = [g for g in held.node.gpus if g is not gpu]
        helpers.until(lambda: all(g.locked_mhz() is None for g in others), 1)
    finally:
        gpu.set_fault(Fault.NONE)
    helpers.until(lambda: held.state() == "hold", poll_s=0.05)


# -- daemons of their own --------------------------------------------------------------------------


def test_a_missing_rank_keeps_the_job_in_baseline(make_rig, helpers) -> None:
    """No clock is written, `why` names the stage, and doctor says so and exits with 1."""
    rig = make_rig()
    rig.start()
    rig.start_job(missing_rank=2)
    helpers.until(lambda: len(rig.job.iterations()) >= 8)
    job = rig.job_status()
    assert job["state"] == "baseline"
    assert job["missing_ranks"] == [2]
    assert "stage 2" in job["why"]
    assert [gpu.clock_writes() for gpu in rig.node.gpus] == [0] * helpers.STAGES
    doctor = perseusctl(rig, "doctor", "--json")
    assert doctor.returncode == 1
    found = json.loads(doctor.stdout)
    assert found["ok"] is False
    assert any("missing: stage 2" in finding["text"] for finding in found["findings"])


def test_a_runtime_dir_that_cannot_be_made(tmp_path) -> None:
    """Exit 78 with the path and the fix, no traceback."""
    (tmp_path / "file").write_text("")
    below = str(tmp_path / "file" / "below")
    command = [sys.executable, "-m", "perseusd", "run", "--simulate", "1", "--runtime-dir", below]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert refused.returncode == 78
    assert "below" in refused.stderr
    assert "--runtime-dir" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_clock_process_that_is_not_there(make_rig) -> None:
    """Told to use one that does not answer: exit 69 with the path and the fix, no traceback."""
    rig = make_rig(config='[clock]\nsocket = "/tmp/nobody-listens.sock"\n')
    refused = finished(rig)
    assert refused.returncode == 69
    assert "/tmp/nobody-listens.sock" in refused.stderr  # noqa: S108 - nothing is made there
    assert "Traceback" not in refused.stderr


def test_an_error_of_our_own_costs_one_client_its_service(
    make_rig, make_peer, helpers, monkeypatch, caplog
) -> None:
    """Whatever the core does not foresee in one job's events, the others are served on."""
    rig = make_rig()
    config = load_config(None, {"runtime_dir": rig.folder, "simulate": 4, "observe": True}, {})
    service = Service(config, Reloader(config, Sources()))
    healthy = service.controller.stage_event

    def surprised(client: str, *event: Any) -> Any:
        if next(iter(service.controller.jobs)).endswith(":odd"):
            raise ZeroDivisionError("a surprise")
        return healthy(client, *event)

    def turns(peer) -> Any:
        for _ in range(500):
            service._turn(service._wait())
            if not peer.hears_nothing(0.002):
                return peer.hear()
        return pytest.fail("no answer")

    monkeypatch.setattr(service.controller, "stage_event", surprised)
    try:
        odd, good = make_peer(rig), make_peer(rig)
        odd.send(helpers.hello(job="odd", gpus=[rig.node.gpus[0].info.uuid]))
        assert isinstance(turns(odd), Welcome)
        odd.send(helpers.start(1))
        refusal = turns(odd)
        assert isinstance(refusal, Refusal)
        assert refusal.code == "internal_error"
        assert "a surprise" in caplog.text
        assert service.controller.jobs == {}
        good.send(helpers.hello(job="good", gpus=[rig.node.gpus[0].info.uuid]))
        assert isinstance(turns(good), Welcome)
        good.send(helpers.start(1))
        odd.send(helpers.start(2))
        assert isinstance(turns(odd), Introduce)
        assert [name.split(":")[1] for name in service.controller.jobs] == ["good"]
    finally:
        service.shutdown()


def test_an_error_of_our_own_over_what_is_due_ends_nothing(
    make_rig, make_peer, helpers, monkeypatch, caplog
) -> None:
    """It is logged once, however often it comes; the jobs are learned anew, and served on."""
    rig = make_rig()
    config = load_config(None, {"runtime_dir": rig.folder, "simulate": 4, "observe": True}, {})
    service = Service(config, Reloader(config, Sources()))
    forgotten = []

    def surprised(now_ns: int) -> None:
        raise ZeroDivisionError("a surprise")

    try:
        peer = make_peer(rig)
        peer.send(helpers.hello(gpus=[rig.node.gpus[0].info.uuid]))
        while peer.hears_nothing(0.002):
            service._turn(service._wait())
        assert isinstance(peer.hear(), Welcome)
        (job,) = service.controller.jobs.values()
        monkeypatch.setattr(job, "tick", surprised)
        monkeypatch.setattr(job, "relearn", forgotten.append)
        for _ in range(50):
            service._turn(service._wait())
        assert caplog.text.count("ZeroDivisionError: a surprise") == 1
        assert set(forgotten) == {"perseusd met an error of its own"}
        monkeypatch.undo()
        peer.send(helpers.start(1))
        before = service.counters.events.received["stage_start"]
        while service.counters.events.received["stage_start"] == before:
            service._turn(service._wait())
        assert list(service.controller.jobs.values()) == [job]
    finally:
        service.shutdown()


_RANK = """
import sys, time, zmq
socket = zmq.Context().socket(zmq.DEALER)
socket.connect(sys.argv[1])
socket.send(bytes.fromhex(sys.argv[2]))
print("sent", flush=True)
time.sleep(60)
"""


def test_a_rank_that_is_started_again_is_not_held_against_its_own_past(make_rig, helpers) -> None:
    """Its hello comes within the same turn of the loop in which its predecessor dies, and is read
    before anybody looked for the dead: the new process takes the rank's place."""
    rig = make_rig()
    config = load_config(None, {"runtime_dir": rig.folder, "simulate": 4, "observe": True}, {})
    service = Service(config, Reloader(config, Sources()))
    hello = encode(helpers.hello(gpus=[rig.node.gpus[0].info.uuid])).hex()
    arguments = [sys.executable, "-c", _RANK, f"ipc://{config.hooks_socket}", hello]

    def started() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"sent\n"
        process.stdout.close()
        assert service.intake.socket.poll(10_000)
        return process

    processes = [started()]
    try:
        service._turn({service.intake.socket})
        processes[0].kill()
        processes[0].wait()
        processes.append(started())
        service._turn({service.intake.socket})
        (job,) = service.controller.jobs.values()
        assert [m.process for m in job.roster.members.values()] == [processes[1].pid]
        assert not service.intake.refused
    finally:
        for process in processes:
            process.kill()
            process.wait()
        service.shutdown()


def test_a_backlog_holds_up_no_heartbeat(make_rig, make_peer, helpers, monkeypatch) -> None:
    """Two seconds of work are waiting in messages: turns of the loop stay short, and all of it is
    done in the end."""
    rig = make_rig()
    config = load_config(None, {"runtime_dir": rig.folder, "simulate": 4, "observe": True}, {})
    service = Service(config, Reloader(config, Sources()))
    done = []

    def slow(client: str, *event: Any) -> list[Any]:
        time.sleep(0.02)
        done.append(client)
        return []

    monkeypatch.setattr(service.controller, "stage_event", slow)
    try:
        peer = make_peer(rig)
        peer.send(helpers.hello(gpus=[rig.node.gpus[0].info.uuid]))
        while peer.hears_nothing(0.002):
            service._turn(service._wait())
        for number in range(100):
            peer.send(helpers.start(number + 1))
        longest_s = 0.0
        while len(done) < 100:
            ready, begin_s = service._wait(), time.monotonic()
            service._turn(ready)
            longest_s = max(longest_s, time.monotonic() - begin_s)
        assert longest_s < 1  # without a limit it takes two
    finally:
        service.shutdown()
