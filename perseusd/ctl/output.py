"""How every command shows things: one JSON object, or text that a terminal may safely print."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

SCHEMA_VERSION: Final = 1
UNKNOWN: Final = "–"


def print_json(answer: Mapping[str, object]) -> None:
    """Exactly one JSON object with `schema_version` on standard output."""
    print(json.dumps({"schema_version": SCHEMA_VERSION, **answer}, indent=2))


def safe(value: object) -> str:
    """Others' text, such as a job id, without the characters that could steer a terminal."""
    if value is None:
        return UNKNOWN
    return "".join(
        char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(value)
    )


def number(value: object, form: str = ".0f", unit: str = "") -> str:
    """A number with its unit, or a dash for one that is not known."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return UNKNOWN if value is None else safe(value)
    return f"{value:{form}}{unit}"


def percent(value: object) -> str:
    return number(value, "z.1%").replace("%", " %")


def percent_with_interval(value: object, low: object, high: object) -> str:
    """`16.2 % (15.1 to 17.0)`; "not measured yet" where there is no value."""
    if value is None:
        return "not measured yet"
    if low is None or high is None:
        return percent(value)
    low_text, high_text = (percent(bound).removesuffix(" %") for bound in (low, high))
    return f"{percent(value)} ({low_text} to {high_text})"


def counted(count: int, one: str, many: str | None = None) -> str:
    """`1 rank`, `2 ranks`; many: the plural where it is not made with an s."""
    return f"{count} {one if count == 1 else many or one + 's'}"
