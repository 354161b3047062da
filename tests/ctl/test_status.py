"""`perseusctl status`: what it shows of a Status object, as text and as JSON."""

from __future__ import annotations

import io
import json
import re
import threading
from typing import Any

import pytest
from rich.console import Console

from perseusd.ctl import status as status_module
from perseusd.ctl.main import main
from perseusd.ctl.overview import short_uuids
from perseusd.ctl.telling import duration


def test_the_tables_show_gpus_and_jobs(stand_in, status, capsys) -> None:
    """Clocks, power, the saving with its interval, and what is not measured yet."""
    stand_in.answers(status)
    assert main(["status"]) == 0
    shown = capsys.readouterr().out
    for part in ("GPU-0001", "1095", "1110", "251", "123.5", "sw_power_cap", "job-a", "1 of 1"):
        assert part in shown
    assert "12.3 % (11.0 to 13.5)" in shown
    assert "not measured yet" in shown
    assert "1 d 2 h" in shown


def test_why_a_job_is_not_slowed_is_said(stand_in, status, capsys) -> None:
    """The reason and the stragglers stand in the job's block in full."""
    status["jobs"][0]["why"] = "waiting for the ranks of stage 3: nobody has said hello for them"
    status["jobs"][0]["stragglers"] = [{"replica": 1, "stage": None, "factor": 1.2}]
    stand_in.answers(status)
    assert main(["status"]) == 0
    shown = capsys.readouterr().out
    assert "waiting for the ranks of stage 3: nobody has said hello for them" in shown
    assert "replica 1: 1.20 times its usual time, cause not known, since iteration –" in shown


@pytest.fixture
def shown_at_80(monkeypatch, stand_in, capsys):
    """What `perseusctl status` prints on a terminal of 80 columns."""
    console = Console(width=80, highlight=False)
    monkeypatch.setattr(status_module, "_console", lambda: console)

    def show(status: dict[str, Any]) -> str:
        stand_in.answers(status)
        assert main(["status"]) == 0
        shown: str = capsys.readouterr().out
        assert max(map(len, shown.splitlines())) <= 80
        return shown

    return show


def stages(count: int) -> dict[str, object]:
    shares = [{"replica": 0, "stage": s, "share": (s + 1) / 100} for s in range(count)]
    return {"critical_path": shares, "slack": shares}


def test_path_slack_and_stragglers_of_a_job(shown_at_80, status) -> None:
    """Every stage's share and slack side by side, and the straggler with factor, cause, onset."""
    found = {"replica": 1, "stage": 2, "rank": 2, "factor": 1.352, "since_iteration": 390}
    found |= {"until_iteration": None, "transient": False, "cause": "power_cap"}
    status["jobs"][0] |= {**stages(8), "stragglers": [found]}
    shown = shown_at_80(status)
    assert re.search(r"critical path +1 % +2 % +3 % +4 % +5 % +6 % +7 % +8 %", shown)
    assert re.search(r"slack +1 % +2 % +3 %", shown)
    words = " ".join(shown.split())
    assert "replica 1 stage 2: 1.35 times its usual time, power cap, since iteration 390" in words


def test_many_stages_and_gpus_are_summed_up(shown_at_80, status) -> None:
    """64 GPUs in a handful of lines: the largest shares, a job's GPUs in one row, and odd ones."""
    gpu = status["gpus"][0] | {"state": "ok", "follows_request": "yes"}
    status["gpus"] = [gpu | {"uuid": f"GPU-{n:08d}-00"} for n in range(63)]
    status["gpus"].append(gpu | {"uuid": "GPU-odd", "follows_request": "above"})
    status["jobs"][0] |= stages(64)
    shown = shown_at_80(status)
    assert len(shown.splitlines()) < 32
    assert "64 GPUs: Test GPU" in shown
    assert "stage 63 64 %" in shown
    assert "stage 62 63 %" in shown
    assert "63 × ok, sw_power_cap; 1 × ok, above what was asked" in " ".join(shown.split())
    assert "GPU-odd" in shown
    assert "GPU-00000001" not in shown


def test_what_is_saved_has_its_interval_and_what_it_cost(shown_at_80, status) -> None:
    """Joules with low and high, the reference iterations and their price; emulated is said."""
    status["daemon"]["emulated"] = True
    status["jobs"][0] |= {
        "energy_saved_j_low": 4100.0,
        "energy_saved_j_high": 5900.0,
        "reference_iterations": 3,
        "reference_cost": 0.0027,
    }
    words = " ".join(shown_at_80(status).split())
    assert "12.3 % (11.0 to 13.5), on emulated GPUs" in words
    assert "5.0 kJ (4.1 to 5.9); measured on 3 reference iterations, at 0.27 % of" in words


def test_a_prediction_is_told_as_one(shown_at_80, status) -> None:
    """Observing: what acting would save, that it is not measured, and where it comes from."""
    status["daemon"]["mode"] = "observe"
    forecast = {"saving": 0.143, "saving_low": 0.09, "saving_high": 0.18, "source": "some paper"}
    status["jobs"][0] |= {"state": "baseline", "predicted_saving": forecast, "saving": None}
    words = " ".join(shown_at_80(status).split())
    assert "saving predicted 14.3 % (9.0 to 18.0): not measured, from a prior (some paper)" in words
    assert "not measured yet" not in words
    status["jobs"][0] |= {"predicted_saving": None, "no_prediction": "nothing is published"}
    assert "no saving is predicted: nothing is published" in shown_at_80(status)
    status["jobs"][0]["no_prediction"] = None
    assert "no saving is predicted yet" in shown_at_80(status)


def test_learning_says_how_far_it_is(shown_at_80, status) -> None:
    """Trials so far, the lowest clock tried, and what is known least."""
    doubt = {"stage": 2, "instruction": "backward", "time_error": 0.041, "energy_error": 0.06}
    learning = {"iterations": 6, "lowest_mhz": 1065, "uncertain": [doubt], "remembered": "checking"}
    status["jobs"][0] |= {"state": "learn", "learning": learning}
    words = " ".join(shown_at_80(status).split())
    assert "6 iterations with trials, down to 1065 MHz" in words
    assert "backward of stage 2, time ± 4.1 %, energy ± 6.0 %" in words
    assert "curves of an earlier run: checking" in words


def test_modes_and_emulation_are_announced(stand_in, status, capsys) -> None:
    """Nobody mistakes observe-only mode or emulated GPUs for the real thing."""
    status["daemon"] |= {"mode": "observe", "emulated": True}
    status["gpus"][0] |= {"emulated": True, "requested_mhz": None}
    status["jobs"] = []
    stand_in.answers(status)
    assert main(["status"]) == 0
    shown = capsys.readouterr().out
    assert "observe-only: no clock is ever written" in shown
    assert "emulated GPUs" in shown
    assert "full" in shown
    assert "No job has reported yet" in shown


@pytest.mark.parametrize(("iteration", "told"), [(24, "iteration 24"), (-1, "no iteration seen")])
def test_the_last_job_is_told_where_none_runs(
    stand_in, status, capsys, iteration: int, told: str
) -> None:
    """A short job is over before anybody looks: which it was, how far it came, and when."""
    status["jobs"] = []
    status["ended"] = [{"id": "me:short", "iteration": iteration, "ended_s_ago": 125.2}]
    stand_in.answers(status)
    assert main(["status"]) == 0
    shown = capsys.readouterr().out
    assert f"No job is running. Last: me:short, {told}, ended 2 min 5 s ago." in shown


def test_before_the_first_iteration_there_is_no_number(stand_in, status, capsys) -> None:
    """A job that has only said hello is in no iteration yet."""
    status["jobs"][0]["iteration"] = -1
    stand_in.answers(status)
    assert main(["status"]) == 0
    assert "1 of 1 ranks, iteration –" in capsys.readouterr().out


def test_a_dead_clock_process_stands_in_the_headline(stand_in, status, capsys) -> None:
    """That no clock can be written is not left to the doctor."""
    status["daemon"]["clock_process"] = "dead"
    status["gpus"] = []
    stand_in.answers(status)
    assert main(["status"]) == 0
    shown = capsys.readouterr().out
    assert "perseusd-clock is dead" in shown
    assert "No GPU is visible" in shown


@pytest.mark.parametrize(
    ("driver", "told"),
    [
        ({"driver": "free"}, "paused: every clock is full; `perseusctl resume` ends it"),
        ({"driver": "letting_go", "driver_trouble": "a call hangs"}, "the driver is let go of"),
        ({"driver": "opening"}, "being resumed"),
    ],
)
def test_a_pause_is_told_and_not_a_dead_clock_process(
    stand_in, status, capsys, driver: dict[str, str], told: str
) -> None:
    """A pause is what an operator wanted: without perseusd-clock, and to be ended by `resume`."""
    status["daemon"] |= {"clock_process": "dead"} | driver
    stand_in.answers(status)
    assert main(["status"]) == 0
    shown = capsys.readouterr().out
    assert told in shown
    assert driver.get("driver_trouble", "") in shown
    assert "dead" not in shown


def test_who_sees_own_jobs_alone_is_told_so(stand_in, status, capsys) -> None:
    """No job of one's own is not no job at all."""
    stand_in.answers(status)
    assert main(["status"]) == 0
    assert "not shown" not in capsys.readouterr().out
    status["daemon"]["configuration"] = None
    stand_in.answers(status)
    assert main(["status"]) == 0
    assert "Other users' jobs are not shown to you" in capsys.readouterr().out


def test_what_an_operator_released_and_gpus_that_are_missing_are_told(
    stand_in, status, capsys
) -> None:
    """Also where no job is there that would wait for them."""
    status["daemon"] |= {
        "released": {"GPU-0001": "GPU-0001 was released by an operator: `perseusctl resume …`"},
        "missing_gpus": [{"index": 3, "why": "GPU is lost"}],
    }
    stand_in.answers(status)
    assert main(["status"]) == 0
    shown = capsys.readouterr().out
    assert "GPU-0001 was released by an operator" in shown
    assert "GPU 3 could not be opened: GPU is lost" in shown


def test_a_daemon_that_cannot_tell_who_uses_gpus_says_so(stand_in, status, capsys) -> None:
    """Before any job is there that would be kept at full clock for it."""
    status["daemon"]["gpu_use_unknown"] = "no clock will be lowered: who uses …"
    status["jobs"] = []
    stand_in.answers(status)
    assert main(["status"]) == 0
    assert "no clock will be lowered: who uses" in capsys.readouterr().out


def test_json_is_one_object_with_schema_version(stand_in, status, capsys) -> None:
    """--json prints the daemon's object unchanged, plus schema_version."""
    stand_in.answers(status)
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"schema_version": 1, **status}


def test_names_cannot_steer_the_terminal(stand_in, status, capsys) -> None:
    """Escape sequences and markup in a client's job id are shown, not obeyed."""
    status["jobs"][0]["id"] = "\x1b[2Jjob\n[bold]\ud800"
    stand_in.answer = lambda request: [json.dumps(status).encode()]
    assert main(["status"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "[bold]" in shown


def test_values_that_a_daemon_does_not_have_are_dashes(stand_in, capsys) -> None:
    """An older or newer daemon that leaves fields away, or fills them oddly, is still shown."""
    stand_in.answers(
        {"daemon": {"uptime_s": True}, "gpus": [{"power_w": "?"}], "jobs": [{"saving": "x"}]}
    )
    assert main(["status"]) == 0
    assert "–" in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer",
    [{}, {"daemon": {}, "gpus": [], "jobs": "none"}, {"daemon": {}, "gpus": [1], "jobs": []}],
)
def test_an_answer_of_another_shape_fails(stand_in, capsys, answer: dict[str, Any]) -> None:
    """An object that is no Status ends in exit code 1 and a sentence."""
    stand_in.answers(answer)
    assert main(["status"]) == 1
    assert "lacks daemon, gpus or jobs" in capsys.readouterr().err


def test_a_daemon_that_refuses_fails(stand_in, capsys) -> None:
    """A daemon's own error is passed on."""
    stand_in.answers({"ok": False, "error": "no such command"})
    assert main(["status"]) == 1
    assert "no such command" in capsys.readouterr().err


def test_errors_with_json_are_one_object_too(tmp_path, capsys) -> None:
    """A program that reads standard output finds one object whatever happens."""
    assert main(["--runtime-dir", str(tmp_path), "status", "--json"]) == 69
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert answer["exit_code"] == 69
    assert answer["schema_version"] == 1
    assert "no such socket" in answer["error"]
    assert "no such socket" in captured.err


def test_watching_goes_on_without_a_daemon(
    stand_in, status, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--watch waits for a daemon that went away, and Ctrl-C ends it with 0."""
    rounds = iter(["answer", "away", "answer", "interrupt"])
    kinds: list[str] = []

    def sleep(_: float) -> None:
        kinds.append(next(rounds))
        if kinds[-1] == "interrupt":
            raise KeyboardInterrupt

    real = status_module.ask

    def ask(*arguments: Any) -> Any:
        if kinds and kinds[-1] == "away":
            raise status_module.DaemonUnreachableError("gone; start it")
        return real(*arguments)

    monkeypatch.setattr(status_module, "ask", ask)
    monkeypatch.setattr("time.sleep", sleep)
    stand_in.answers(status)
    assert main(["status", "--watch"]) == 0
    assert kinds[-1] == "interrupt"
    assert threading.active_count() < 20


@pytest.mark.parametrize("terminal", [False, True])
def test_watching_shows_every_frame(
    stand_in, status, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    """Into a pipe each frame is written when it is known, not when all are over."""
    monkeypatch.setenv("TERM", "xterm")
    words = io.StringIO()
    console = Console(file=words, force_terminal=terminal, width=140)
    monkeypatch.setattr(status_module, "_console", lambda: console)
    seen: list[int] = []

    def sleep(_: float) -> None:
        seen.append(words.getvalue().count("perseusd 0.1.0"))
        if len(seen) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", sleep)
    stand_in.answers(status)
    assert main(["status", "--watch"]) == 0
    assert terminal or seen == [0, 1, 2] or seen == [1, 2, 3]
    assert "perseusd 0.1.0" in words.getvalue()


@pytest.mark.parametrize(
    ("uuids", "shown"),
    [
        (["GPU-12345678-1", "GPU-12345679-1"], ["GPU-12345678", "GPU-12345679"]),
        (["GPU-sim00000-01", "GPU-sim00000-02"], ["GPU-sim…0-01", "GPU-sim…0-02"]),
        (["GPU-a-0-0001", "GPU-a-0-0001"], ["GPU-a-0-0001", "GPU-a-0-0001"]),
        (["GPU-sim00000-1-0001", "GPU-sim00000-2-0001"], ["GPU-sim00000-1-0001"]),
    ],
)
def test_uuids_are_cut_while_they_differ(uuids: list[str], shown: list[str]) -> None:
    """Two GPUs never look the same in the table."""
    assert short_uuids(uuids)[: len(shown)] == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(5.9, "5 s"), (65, "1 min 5 s"), (3700, "1 h 1 min"), (180000, "2 d 2 h"), (None, "–")],
)
def test_durations(seconds: float | None, shown: str) -> None:
    """Uptimes read as people say them."""
    assert duration(seconds) == shown


def test_usage_errors_exit_2(capsys) -> None:
    """No command, an unknown one, or options that exclude each other: exit code 2."""
    for words in ([], ["stauts"], ["status", "--json", "--watch"]):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2
    assert main(["status", "--interval", "0"]) == 2
    assert re.search("0.1 to 3600", capsys.readouterr().err)


def test_usage_errors_with_json_are_one_object_too(capsys) -> None:
    """Wrong options, a missing one, an unknown command."""
    missing = ["straggler", "announce", "--job", "a", "--json"]
    for words in (["status", "--json", "--watch"], missing, ["stauts", "--json"]):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2
        answer = json.loads(capsys.readouterr().out)
        assert (answer["schema_version"], answer["exit_code"]) == (1, 2)


def test_a_runtime_directory_that_is_too_long_is_a_configuration_error(capsys) -> None:
    """The 107 bytes of a socket's path bind perseusctl as they bind the daemon."""
    assert main(["--runtime-dir", "/" + "x" * 200, "status"]) == 78
    assert "107" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        ("status", ["What every GPU and job is doing", "--runtime-dir DIR"]),
        ("straggler", ["List who is slow; announce", "list|announce|end"]),
    ],
)
def test_the_help_names_what_there_is(capsys, command: str, parts: list[str]) -> None:
    """Names keep their capitals, and no option or action is left out."""
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for part in parts:
        assert part in shown
