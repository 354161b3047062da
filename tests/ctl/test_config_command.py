"""`perseusctl config`: what is wrong with files, and what is in force."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from perseusd.ctl.main import main


@pytest.fixture(autouse=True)
def no_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None runs, and the shell's variables are the daemon's business."""
    monkeypatch.setenv("PERSEUS_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("PERSEUSD_DAEMON_OBSERVE", "no truth")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "50-site.toml").write_text("[access]\nallow_users = [1000, 7]\n")
    made = tmp_path / "perseusd.toml"
    made.write_text("[limits]\nslowdown_budget = 0.01\n")
    return made


def test_sound_files_are_named_and_end_with_0(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file and what conf.d has beside it."""
    assert main(["config", "check", str(file)]) == 0
    assert f"{file.parent}/conf.d/50-site.toml: nothing is wrong" in capsys.readouterr().out
    assert main(["config", "check", str(file), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["schema_version"], answer["ok"], answer["problems"]) == (1, True, [])
    assert answer["files"] == [str(file), str(file.parent / "conf.d" / "50-site.toml")]


def test_every_problem_is_told_and_ends_with_78(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each with its file, key, value and fix; in JSON, apart from each other."""
    file.write_text("[limits]\nslowdown_budget = 7\nsilnce_s = 5\n")
    (file.parent / "conf.d" / "60.toml").write_text("[limits\n")
    assert main(["config", "check", str(file)]) == 78
    out = capsys.readouterr().out
    assert f"{file}: [limits] slowdown_budget = 7: must lie between 0 and 0.5" in out
    assert "3 problems in 3 files." in out
    assert main(["config", "check", str(file), "--json"]) == 78
    first, second, third = json.loads(capsys.readouterr().out)["problems"]
    assert first == {
        "source": str(file),
        "key": "[limits] slowdown_budget",
        "value": "7",
        "problem": "must lie between 0 and 0.5",
    }
    assert (second["key"], second["value"]) == ("[limits] silnce_s", "5")
    assert second["problem"].endswith("did you mean silence_s?")
    assert (third["source"], third["key"]) == (str(file.parent / "conf.d" / "60.toml"), None)


def test_the_systems_file_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    """Where perseusd.service has it; that it is not there is one of the problems."""
    if Path("/etc/perseusd/perseusd.toml").exists():
        assert main(["config", "check"]) in (0, 78)
    else:
        assert main(["config", "check"]) == 78
    assert "/etc/perseusd/perseusd.toml" in capsys.readouterr().out


def test_where_no_file_is_who_asks_hears_of_the_default_and_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A daemon of one's own reads the file that --config names, or none."""
    monkeypatch.setattr("perseusd.ctl.config.DEFAULT_FILE", tmp_path / "none.toml")
    monkeypatch.setenv("PERSEUS_RUNTIME_DIR", str(tmp_path))
    assert main(["config", "check"]) == 78
    assert "give the same: config check FILE" in " ".join(capsys.readouterr().out.split())
    assert main(["config", "show"]) == 0
    shown = "".join(capsys.readouterr().out.split())  # wherever its lines are broken
    assert f"{tmp_path}/none.tomlisnotthere;thesearethedefaults" in shown


def shown(answer: dict[str, Any], key: str) -> tuple[object, object, object]:
    (own,) = [option for option in answer["options"] if option["key"] == key]
    return own["value"], own["origin"], own["live"]


def test_without_a_daemon_the_files_are_shown(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With each value's origin, and whether a reload may change it."""
    assert main(["config", "show", str(file), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["source"], answer["file"]) == ("files", str(file))
    assert shown(answer, "slowdown_budget") == (0.01, {"kind": "file", "name": str(file)}, True)
    drop_in = str(file.parent / "conf.d" / "50-site.toml")
    assert shown(answer, "allow_users") == ([7, 1000], {"kind": "file", "name": drop_in}, True)
    assert shown(answer, "socket") == (None, {"kind": "default", "name": ""}, False)
    assert main(["config", "show", str(file)]) == 0
    out = capsys.readouterr().out
    assert "No running daemon was asked" in out
    assert "[clock] socket" in out
    assert "unset" in out


def test_a_wrong_file_cannot_be_shown(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It ends with 78, and says what `check` says."""
    file.write_text("[limits]\nsilnce_s = 5\n")
    assert main(["config", "show", str(file), "--json"]) == 78
    answer = json.loads(capsys.readouterr().out)
    assert answer["exit_code"] == 78
    assert "did you mean silence_s?" in answer["error"]


def test_a_running_daemon_is_asked(stand_in: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Its flags and its environment count, and what waits for a restart is told."""
    option = {"section": "daemon", "key": "observe", "value": True, "live": False}
    origin = {"kind": "flag", "name": "--observe"}
    stand_in.answers(
        {
            "schema_version": 1,
            "file": "/etc/x.toml",
            "options": [{**option, "origin": origin}],
            "waiting": ["[clock] socket = \x1b[31m; stays"],
            "problems": ["/etc/x.toml: not TOML"],
        }
    )
    assert main(["config", "show"]) == 0
    out = capsys.readouterr().out
    assert stand_in.requests == [{"command": "config"}]
    assert "In force in the daemon" in out
    assert "--observe" in out
    assert "waits for a restart" in out
    assert "refused at the last reload: /etc/x.toml: not TOML" in out
    assert "\x1b[31m" not in out
    assert main(["config", "show", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["source"], answer["schema_version"]) == ("daemon", 1)
    assert shown(answer, "observe") == (True, origin, False)


def test_an_answer_of_another_version_is_no_traceback(
    stand_in: Any, status: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """A daemon that does not know the command yet answers with its status."""
    stand_in.answers(status)
    assert main(["config", "show"]) == 1
    assert "Compare `perseusd --version`" in capsys.readouterr().err
