"""`perseusctl straggler`: announcements go over the control socket, refusals become exit codes."""

from __future__ import annotations

import json

import pytest

from perseusd.ctl.main import main


def test_announce_and_end(stand_in, capsys) -> None:
    """The two requests of the contract, and a sentence each."""
    stand_in.answers({"ok": True})
    assert main(["straggler", "announce", "--job", "a", "--factor", "1.2"]) == 0
    assert main(["straggler", "end", "--job", "a"]) == 0
    assert stand_in.requests == [
        {"command": "straggler_announce", "job": "a", "factor": 1.2},
        {"command": "straggler_end", "job": "a"},
    ]
    shown = capsys.readouterr().out
    assert "1.2 times" in shown
    assert "ended" in shown


def test_json(stand_in, capsys) -> None:
    """--json is one object with schema_version."""
    stand_in.answers({"ok": True})
    assert main(["straggler", "end", "--job", "a", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"schema_version": 1, "ok": True}


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [("not_permitted", 77), ("unknown_job", 2), ("bad_request", 2), ("other", 1)],
)
def test_refusals(stand_in, capsys, code: str, exit_code: int) -> None:
    """Each refusal of the daemon has its exit code, and its words are passed on."""
    stand_in.answers({"ok": False, "code": code, "error": "no job b; known: a"})
    assert main(["straggler", "end", "--job", "b"]) == exit_code
    assert "no job b; known: a" in capsys.readouterr().err


def test_an_answer_that_is_neither_yes_nor_no(stand_in, capsys) -> None:
    """Success is never assumed."""
    stand_in.answers({})
    assert main(["straggler", "end", "--job", "b"]) == 1


@pytest.mark.parametrize("factor", ["0.9", "nan", "inf", "-2"])
def test_a_factor_that_is_no_slowdown(stand_in, capsys, factor: str) -> None:
    """A factor below 1 is refused here, naming what to give, and nothing is sent."""
    assert main(["straggler", "announce", "--job", "a", f"--factor={factor}"]) == 2
    assert "such as 1.2" in capsys.readouterr().err
    assert stand_in.requests == []


def test_no_daemon(tmp_path, capsys) -> None:
    """Without a daemon: 69, naming the control socket."""
    assert main(["straggler", "end", "--job", "a", "--runtime-dir", str(tmp_path)]) == 69
    assert "control.sock" in capsys.readouterr().err
