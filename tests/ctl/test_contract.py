"""What holds for every command of perseusctl: --json, one object, and the exit codes.

A command that is added stands in CASES, or `test_every_command_is_in_the_table` says so.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from perseusd.ctl.main import main, parser
from perseusd.exits import (
    CONFIGURATION,
    DONE,
    FAILED,
    INTERRUPTED,
    NOT_PERMITTED,
    UNREACHABLE,
    USAGE,
)


class Case(NamedTuple):
    """How a command that is called rightly ends.

    words: after the command's own; FILE is a sound configuration. alone: without a daemon.
    refused: where the daemon says that this user may not.
    """

    words: tuple[str, ...]
    alone: int
    refused: int


JOB = ("--job", "a")

CASES: Mapping[tuple[str, ...], Case] = {
    ("status",): Case((), UNREACHABLE, NOT_PERMITTED),
    ("doctor",): Case((), FAILED, FAILED),
    ("plan",): Case(
        ("--profile", "no-such-file", "--blocking-power", "80", "--deadline-ratio", "1"),
        USAGE,
        USAGE,
    ),
    ("analyze",): Case(("no-such-file",), USAGE, USAGE),
    ("record",): Case(("--seconds", "0.1"), UNREACHABLE, UNREACHABLE),  # by a socket of its own
    ("straggler", "list"): Case((), UNREACHABLE, NOT_PERMITTED),
    ("straggler", "announce"): Case((*JOB, "--factor", "1.2"), UNREACHABLE, NOT_PERMITTED),
    ("straggler", "end"): Case(JOB, UNREACHABLE, NOT_PERMITTED),
    ("pause",): Case((), UNREACHABLE, NOT_PERMITTED),
    ("resume",): Case((), UNREACHABLE, NOT_PERMITTED),
    ("release",): Case(("a",), UNREACHABLE, NOT_PERMITTED),
    ("verify",): Case((), UNREACHABLE, NOT_PERMITTED),
    ("memory", "list"): Case((), UNREACHABLE, NOT_PERMITTED),
    ("memory", "forget"): Case(("--all",), UNREACHABLE, NOT_PERMITTED),
    ("config", "check"): Case(("FILE",), DONE, DONE),
    ("config", "show"): Case((), DONE, NOT_PERMITTED),
    ("selftest",): Case((), FAILED, FAILED),  # neither without a driver nor beside a daemon
    ("completion",): Case(("fish",), DONE, DONE),
}

EVERY = sorted(CASES)


def commands(
    made: argparse.ArgumentParser, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """Every command that can be given, with its own parser."""
    below = [a for a in made._actions if isinstance(a, argparse._SubParsersAction)]
    if not below:
        yield path, made
    for action in below:
        for name, command in action.choices.items():
            yield from commands(command, (*path, name))


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSEUS_RUNTIME_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("")


def ended(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> int:
    """The exit code; standard output was exactly one object that fits it."""
    try:
        code = main([*words, "--json"])
    except SystemExit as usage:
        code = int(str(usage.code))
    answer = json.loads(capsys.readouterr().out)
    assert answer["schema_version"] == 1
    if code != DONE and answer.get("ok") is not False:
        assert answer["exit_code"] == code
        assert answer["error"]
    return code


def test_every_command_is_in_the_table() -> None:
    """Whoever adds a command says here how it ends."""
    found = {path for path, _ in commands(parser())}
    assert found - set(CASES) == set(), "add these to CASES, with how they end"
    assert set(CASES) - found == set(), "these are gone"


def test_every_command_can_answer_in_json() -> None:
    """--json is an option of each, and comes after the command."""
    without = [path for path, own in commands(parser()) if "--json" not in own.format_usage()]
    assert without == []


def test_every_command_says_what_it_does() -> None:
    """Each is described where it is listed, each of its options is, and each can be told after the
    command where the daemon is."""
    for path, own in commands(parser()):
        assert "--runtime-dir" in own.format_help(), path
        for action in own._actions:
            assert action.help, (path, action.dest)


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_without_a_daemon(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """69 from what needs one; the others work, or say that a file is missing."""
    assert ended((*path, *CASES[path].words), capsys) == CASES[path].alone


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_a_daemon_that_refuses(
    path: tuple[str, ...], stand_in: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """77 from what controls, where the daemon does not let this user."""
    stand_in.answers({"ok": False, "code": "not_permitted", "error": "uid 1 may not"})
    assert ended((*path, *CASES[path].words), capsys) == CASES[path].refused


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_a_wrong_command_line(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """2, and an object that says what is wrong with it."""
    assert ended((*path, *CASES[path].words, "--no-such-option"), capsys) == USAGE


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_options_are_written_out(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """A beginning of one is none, and the message names those that begin so."""
    with pytest.raises(SystemExit) as ended:
        main([*path, *CASES[path].words, "--jso"])
    assert ended.value.code == USAGE
    assert "--jso is no option; did you mean --json?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--runtime /x status", "--runtime is no option; did you mean --runtime-dir?"),
        ("straggler announce --fac=1.2", "--fac is no option; did you mean --factor?"),
        ("plan --deadlin 2", "did you mean --deadline or --deadline-ratio?"),
        ("status --watsh", "did you mean --watch?"),
        ("--runtime-dir /x status --watsh", "did you mean --watch?"),
    ],
)
def test_what_was_meant(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where something else is wrong because of it: a command or a value that is missing."""
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code == USAGE
    assert said in capsys.readouterr().err


def test_nothing_is_said_of_a_command_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    """What its options are is not known."""
    assert ended(("--runtime-dir", "/x", "statsu"), capsys) == USAGE
    with pytest.raises(SystemExit):
        main(["--runtime-dir", "/x", "statsu", "--json"])
    assert "is no option" not in capsys.readouterr().err


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_a_wrong_environment(
    path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """78 from each, where the runtime directory cannot be one."""
    monkeypatch.setenv("PERSEUS_RUNTIME_DIR", "/" + "d" * 200)
    assert ended((*path, *CASES[path].words), capsys) == CONFIGURATION


def test_an_interrupted_command_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """130, as a shell counts, and still one object."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("perseusd.ctl.status.fetch", interrupted)
    assert ended(("status",), capsys) == INTERRUPTED
