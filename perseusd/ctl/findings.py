"""What a check found: a verdict, in words, with its fix."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum


class Verdict(StrEnum):
    OK = "ok"
    NOTE = "note"
    """Not wrong, and good to know when looking for a reason."""
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """subject: what was looked at, such as `hooks socket` or `job 17.0`."""

    subject: str
    verdict: Verdict
    text: str
    fix: str | None = None

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def ok(subject: str, text: str) -> Finding:
    return Finding(subject, Verdict.OK, text)


def note(subject: str, text: str, fix: str | None = None) -> Finding:
    return Finding(subject, Verdict.NOTE, text, fix)


def problem(subject: str, text: str, fix: str) -> Finding:
    return Finding(subject, Verdict.PROBLEM, text, fix)
