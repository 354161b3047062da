"""Codes for the reasons in words: every reason that the core gives has one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from perseusd import core
from perseusd.core.jobs.guard import Breach
from perseusd.core.jobs.why import PARTS, WhyCode, code_of

SAYING = {"_trouble", "release", "_no_plan"}
"""Methods whose first argument becomes a job's reason."""


def words(node: ast.expr) -> str | None:
    """What a string or f-string says, with what is filled in left out."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "…".join(words(v) or "" for v in node.values if isinstance(v, ast.Constant))
    return None


def reasons() -> Iterator[str]:
    """Every literal that the core assigns to `_why`, gives to SAYING, or that a roster returns.

    And what the guard says, which gives names to its literals.
    """
    for file in sorted(Path(core.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            said: ast.expr | None = None
            if isinstance(node, ast.Assign):
                target = node.targets[0]
                if isinstance(target, ast.Attribute) and target.attr == "_why":
                    said = node.value
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                said = node.args[0] if node.func.attr in SAYING else None
            elif isinstance(node, ast.Return) and file.name == "roster.py":
                said = node.value
            text = words(said) if said is not None else None
            if text and len(text.split()) > 2 and not text.startswith(" ("):
                yield text
    yield from (breach.value for breach in Breach)


@pytest.mark.parametrize("why", sorted(set(reasons())))
def test_every_reason_has_a_code(why: str) -> None:
    """A new reason needs a line in the table, or programs are told `other`."""
    assert code_of(why) not in (None, WhyCode.OTHER)


def test_reasons_are_found_at_all() -> None:
    """The search above finds the reasons that are there; with none it would prove nothing."""
    assert len(set(reasons())) > 12


@pytest.mark.parametrize(
    ("why", "code"),
    [
        ("", None),
        ("something new", WhyCode.OTHER),
        ("rank 2 has ended", WhyCode.RANK_GONE),
        ("rank 2 has ended; waiting for 1 of 3 ranks", WhyCode.RANKS_MISSING),
        ("could not set 1200 MHz on GPU-1: refused", WhyCode.WRITE_FAILED),
        ("perseusd-clock went away", WhyCode.CLOCK_PROCESS),
        (
            "no plan could be made: no lower clock could be tried without slowing training: there "
            "is no slack in this job, every computation is on its critical path",
            WhyCode.NOTHING_WAITS,
        ),
        ("rank 1: forward 2 came at position 5 of its iteration", WhyCode.ORDER),
    ],
)
def test_codes(why: str, code: WhyCode | None) -> None:
    """Where several parts match, what can be done something about comes first."""
    assert code_of(why) == code


def test_every_code_can_come_up() -> None:
    """No code is in the list that nothing leads to."""
    assert {code for _, code in PARTS} | {WhyCode.OTHER} == set(WhyCode)
