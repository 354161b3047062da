"""`perseusctl memory`: what it asks, how it waits for the daemon's disk, and what it shows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from perseusd.ctl import memory
from perseusd.ctl.main import main

A, B, C = "ab" + "0" * 30, "ab" + "1" * 30, "cd" * 16


class Disk:
    """Answers as the daemon does; `slow`: so many lists are as of the look before."""

    def __init__(self, kept: list[str], slow: int = 1) -> None:
        self.kept, self.seen, self.looks, self.slow = kept, list(kept), 0, slow
        self.asked = 0
        self.stuck = False

    def __call__(self, request: Any) -> list[bytes]:
        if request["command"] == "memory_forget":
            if not self.stuck:
                self.kept.remove(request["signature"])
            return [json.dumps({"ok": True, "look": self.asked + 1}).encode()]
        curves = [self.curve(signature) for signature in self.seen]
        answer = {
            "ok": True, "remember": True, "directory": "/d/curves", "curves": curves,
            "troubles": ["cannot write /d/curves: No space left on device"] if self.stuck else [],
            "looks": self.looks, "look": self.asked + 1,
        }  # fmt: skip
        self.asked += 1
        if self.asked > self.slow:
            self.looks, self.seen = self.asked, list(self.kept)
        return [json.dumps(answer).encode()]

    @staticmethod
    def curve(signature: str) -> dict[str, Any]:
        return {
            "signature": signature, "size_bytes": 9876, "used_s_ago": 7300.0, "stages": 8,
            "gpus": ["NVIDIA A100"], "schedule": "1f1b", "saved": "2026-01-02T03:04:05Z",
        }  # fmt: skip


def test_list(stand_in, capsys) -> None:
    """What a person looks for, beginnings of signatures, and a link to where they lie."""
    stand_in.answer = Disk([A, C])
    assert main(["memory", "list"]) == 0
    shown = capsys.readouterr().out
    for part in ("/d/curves", A[:12], "NVIDIA A100", "1f1b", "2 h 1 min ago", "9876", "2026-01-02"):
        assert part in shown


def test_list_as_json(stand_in, capsys) -> None:
    """One object with schema_version; nothing of the looks at the disk."""
    stand_in.answer = Disk([A])
    assert main(["memory", "list", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["schema_version"] == 1
    assert set(shown) == {"schema_version", "remember", "directory", "troubles", "curves"}
    assert [curve["signature"] for curve in shown["curves"]] == [A]


@pytest.mark.parametrize("remember", [True, False])
def test_nothing_is_kept(stand_in, capsys, remember: bool) -> None:
    """An empty list and one switched off are told apart."""
    answer = {"ok": True, "remember": remember, "directory": "/d", "curves": []}
    stand_in.answers(answer | {"looks": 1, "look": 1})
    assert main(["memory", "list"]) == 0
    shown = capsys.readouterr().out
    assert ("remember = false" in shown) is not remember


def test_hostile_text_steers_no_terminal(stand_in, capsys) -> None:
    """A damaged entry's words are shown without what could move a cursor."""
    entry = Disk.curve(A) | {"damaged": "\x1b[2Jx", "gpus": None, "schedule": "[red]\x07"}
    answer = {"ok": True, "remember": True, "directory": "/d\x1b", "curves": [entry]}
    stand_in.answers(answer | {"looks": 1, "look": 1, "troubles": ["[bold]\x1b"]})
    assert main(["memory", "list"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "[red]" in shown


def test_forget_by_the_beginning(stand_in, capsys) -> None:
    """A beginning that only one has, whole on the wire; and it is waited for until it is gone."""
    disk = stand_in.answer = Disk([A, B, C], slow=3)
    assert main(["memory", "forget", "CD"]) == 0
    assert disk.kept == [A, B]
    assert {"command": "memory_forget", "signature": C} in stand_in.requests
    assert "1 signature" in capsys.readouterr().out


@pytest.mark.parametrize(("asked", "part"), [("ab", "2 begin so"), ("ff", "none begins so")])
def test_forget_what_is_not_clear(stand_in, capsys, asked: str, part: str) -> None:
    """Two that begin so, or none: a usage error, and nothing is forgotten."""
    disk = stand_in.answer = Disk([A, B, C])
    assert main(["memory", "forget", asked]) == 2
    assert part in capsys.readouterr().err
    assert disk.kept == [A, B, C]


def test_forget_all(stand_in, capsys) -> None:
    """Everything, as JSON with what it was; without any, that is nothing."""
    stand_in.answer = Disk([A, C])
    assert main(["memory", "forget", "--all", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["forgotten"] == [A, C]
    assert main(["memory", "forget", "--all"]) == 0
    assert "0 signatures" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], [A, "--all"]])
def test_forget_names_one_or_all(stand_in, arguments: list[str]) -> None:
    """Neither or both is a usage error, and nothing is asked."""
    with pytest.raises(SystemExit) as exit_:
        main(["memory", "forget", *arguments])
    assert exit_.value.code == 2
    assert stand_in.requests == []


def test_what_could_not_be_forgotten(stand_in, capsys) -> None:
    """Success is never assumed: still there is exit code 1, with what the daemon met."""
    disk = stand_in.answer = Disk([A])
    disk.stuck = True
    assert main(["memory", "forget", A]) == 1
    shown = capsys.readouterr().err
    assert "still there" in shown
    assert "No space left" in shown


def test_a_disk_that_does_not_answer(stand_in, capsys, monkeypatch) -> None:
    """The daemon answers and its disk does not: exit code 1, and that training is unaffected."""
    monkeypatch.setattr(memory, "PATIENCE_S", 0.1)
    stand_in.answer = Disk([A], slow=10**6)
    assert main(["memory", "list"]) == 1
    assert "training is unaffected" in capsys.readouterr().err


def test_refusals_and_foreign_answers(stand_in, capsys) -> None:
    """Not permitted is 77, with the daemon's words; an answer of something else is an error."""
    stand_in.answers({"ok": False, "code": "not_permitted", "error": "uid 7 may not"})
    assert main(["memory", "list"]) == 77
    assert "uid 7 may not" in capsys.readouterr().err
    for foreign in ({"ok": True}, {"ok": True, "curves": [1], "look": 1, "looks": 1}, {}):
        stand_in.answers(foreign)
        assert main(["memory", "list"]) == 1
