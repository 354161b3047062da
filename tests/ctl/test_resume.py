"""`perseusctl resume`: what it ended, or that there was nothing to resume."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from perseusd.ctl.main import main

Resume = Callable[..., str]


@pytest.fixture
def resumed(stand_in: Any, status: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> Resume:
    """What it prints, with an exit code of 0, where the daemon answers so."""

    def run(*words: str, released: Mapping[str, str] | None = None, **answer: object) -> str:
        status["daemon"] |= {"driver": "held", "released": released or {}}
        orders = {"ok": True, **answer}
        stand_in.answer = lambda request: [
            json.dumps(orders if request["command"] == "resume" else status).encode()
        ]
        assert main(["resume", *words]) == 0
        return capsys.readouterr().out

    return run


def test_a_pause_is_ended(resumed: Resume) -> None:
    """Also one whose end had begun, and where a daemon does not tell whether there was one."""
    for answer in (
        {"driver": "opening", "changed": True},
        {"driver": "opening", "changed": False},
        {"driver": "held"},
    ):
        assert resumed(**answer).startswith("resumed: the driver is held again")


def test_no_pause_to_end(resumed: Resume) -> None:
    """What keeps clocks full instead is told, with what ends it."""
    idle = {"driver": "held", "changed": False}
    assert resumed(**idle) == "nothing to resume: perseusd was not paused\n"
    why = "a was released by an operator: `perseusctl resume a`"
    assert resumed(released={"a": why}, **idle).splitlines()[1:] == [why]
    assert json.loads(resumed("--json", **idle))["changed"] is False


def test_one_job(resumed: Resume) -> None:
    """Its clock is perseusd's again only if it was not before, and nothing else is in the way."""
    there = {"name": "root:a", "driver": "held"}
    assert "perseusd's again" in resumed("a", changed=True, **there)
    assert resumed("a", changed=False, **there) == "nothing to resume: root:a was not released\n"
    assert json.loads(resumed("a", "--json", changed=False, **there)) == {
        "schema_version": 1,
        "name": "root:a",
        "changed": False,
    }


def test_one_job_during_a_pause(resumed: Resume) -> None:
    """It stays at full clock, which is said with what ends it."""
    for changed in (True, False):
        shown = resumed("a", name="root:a", driver="free", changed=changed)
        assert "perseusd's again" not in shown
        assert "but perseusd is paused: every clock is full; `perseusctl resume` ends it" in shown


def test_one_gpu(resumed: Resume, status: dict[str, Any]) -> None:
    """Only of a GPU is it known that no other tool's clock is there."""
    uuid = status["gpus"][0]["uuid"]
    told = resumed(uuid, changed=False, name=uuid, driver="held")
    assert told == (
        f"nothing to resume: {uuid} was not released, and no other tool's clock is known there\n"
    )
