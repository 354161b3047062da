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
from perseusd.ctl.status import _short_uuids, duration


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
    """The reason and the stragglers stand under the table in full."""
    status["jobs"][0]["why"] = "waiting for the ranks of stage 3: nobody has said hello for them"
    status["jobs"][0]["stragglers"] = [{"replica": 1, "stage": None, "factor": 1.2}]
    stand_in.answers(status)
    assert main(["status"]) == 0
    shown = capsys.readouterr().out
    assert "job-a: waiting for the ranks of stage 3: nobody has said hello for them" in shown
    assert "stragglers: replica 1 factor 1.2" in shown


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


def test_a_dead_clock_process_stands_in_the_headline(stand_in, status, capsys) -> None:
    """That no clock can be written is not left to the doctor."""
    status["daemon"]["clock_process"] = "dead"
    status["gpus"] = []
    stand_in.answers(status)
    assert main(["status"]) == 0
    shown = capsys.readouterr().out
    assert "perseusd-clock is dead" in shown
    assert "No GPU is visible" in shown


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
    assert _short_uuids(uuids)[: len(shown)] == shown


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
