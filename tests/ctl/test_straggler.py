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
    assert "announced straggler ended" in shown


def test_an_end_of_what_was_not_announced(stand_in, capsys) -> None:
    """It is so already, which is no error, and nothing is said to have ended."""
    stand_in.answers({"ok": True, "changed": False})
    assert main(["straggler", "end", "--job", "a"]) == 0
    assert "a: nothing to end: no straggler is announced" in capsys.readouterr().out
    assert main(["straggler", "end", "--job", "a", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["changed"] is False


def test_announced_beforehand(stand_in, capsys) -> None:
    """--in goes along as seconds, and the sentence says when it begins."""
    stand_in.answers({"ok": True})
    assert main(["straggler", "announce", "--job", "a", "--factor", "1.2", "--in", "30"]) == 0
    assert stand_in.requests[-1] == {
        "command": "straggler_announce",
        "job": "a",
        "factor": 1.2,
        "in_s": 30.0,
    }
    assert "beginning in 30 s" in capsys.readouterr().out


@pytest.mark.parametrize("in_s", ["-1", "86401", "nan", "inf"])
def test_a_notice_that_cannot_be(stand_in, capsys, in_s: str) -> None:
    """Refused here, naming the range, and nothing is sent."""
    announce = ["straggler", "announce", "--job", "a", "--factor", "1.2"]
    assert main([*announce, f"--in={in_s}"]) == 2
    assert "from 0 to 86400" in capsys.readouterr().err
    assert stand_in.requests == []


STRAGGLER = {
    "replica": 0,
    "stage": 3,
    "rank": 3,
    "factor": 1.5,
    "since_iteration": 40,
    "until_iteration": None,
    "transient": False,
    "cause": "thermal",
}


@pytest.fixture
def slow(status):
    """A status whose job has one straggler, one that is over, and one to come."""
    over = STRAGGLER | {"stage": 1, "rank": 1, "until_iteration": 22, "since_iteration": 20}
    status["jobs"][0] |= {
        "id": "root:a",
        "stragglers": [STRAGGLER],
        "straggler_history": [over | {"transient": True, "cause": "communication"}],
        "straggler_to_come": {"factor": 1.2, "starts_in_s": 25.0},
    }
    return status


def test_list(stand_in, slow, capsys) -> None:
    """Who is slow, who will be, who was: factor, cause and iterations of each."""
    stand_in.answers(slow)
    assert main(["straggler", "list"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown == [
        "root:a:",
        "  now: replica 0 stage 3: 1.50 times its usual time, thermal, since iteration 40",
        "  to come: another replica: 1.20 times its usual time, announced, to begin in 25 s",
        "  over: replica 0 stage 1: 1.50 times its usual time, communication, transient, "
        "iterations 20 to 22",
    ]


def test_list_of_a_job_as_json(stand_in, slow, capsys) -> None:
    """--job by its short name; --json has the same lists as status."""
    stand_in.answers(slow)
    assert main(["straggler", "list", "--job", "a", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["schema_version"] == 1
    assert [job["id"] for job in answer["jobs"]] == ["root:a"]
    assert answer["jobs"][0]["stragglers"] == [STRAGGLER]
    assert answer["jobs"][0]["straggler_to_come"]["factor"] == 1.2
    assert main(["straggler", "list", "--job", "ghost"]) == 2
    assert "running are root:a" in capsys.readouterr().err


def test_list_with_nothing_to_tell(stand_in, status, capsys) -> None:
    """No straggler, no job, and a daemon that is too old to know of either."""
    status["jobs"][0]["stragglers"] = None
    stand_in.answers(status)
    assert main(["straggler", "list"]) == 0
    assert "no straggler now" in capsys.readouterr().out
    status["jobs"] = []
    stand_in.answers(status)
    assert main(["straggler", "list"]) == 0
    assert "no job is running" in capsys.readouterr().out


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
