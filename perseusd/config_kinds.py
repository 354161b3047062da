"""What the value of an option may be: in words, checked, and as a variable's text."""

from __future__ import annotations

import grp
import os
import pwd
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

GPU_CHECKS: Final = ("process", "user", "off")
LOG_LEVELS: Final = ("debug", "info", "warning", "error")


class RefusedError(ValueError):
    """A value that an option does not take; the message says what it does take."""


def shown(value: object) -> str:
    """A value as its file would write it, cut where it is long."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value.bit_length() > 200:  # Python refuses to print a huge one
        return f"a number of {value.bit_length()} bits"
    text = f'"{value}"' if isinstance(value, str | Path) else str(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def literal(text: str) -> object:
    """A variable's text as TOML would take it; text that is no TOML stands for itself."""
    try:
        found = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return found["value"] if len(found) == 1 else text


def plain(value: Any) -> object:
    """A checked value as JSON and TOML have it."""
    return str(value) if isinstance(value, Path) else value


@dataclass(frozen=True)
class Kind:
    """What an option's value may be.

    says: in words, after "must be". check: the value as the project wants it; raises RefusedError.
    parse: a variable's text → what a file would hold. plain: what was checked → JSON and TOML.
    """

    says: str
    check: Callable[[object], Any]
    parse: Callable[[str], object] = literal
    plain: Callable[[Any], object] = plain


def number(low: float, high: float) -> Kind:
    says = f"a number from {low:g} to {high:g}"

    def check(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RefusedError(f"must be {says}")
        if not low <= value <= high:  # neither NaN nor infinity gets past this
            raise RefusedError(f"must lie between {low:g} and {high:g}")
        return float(value)

    return Kind(says, check)


def integer(low: int, high: int) -> Kind:
    says = f"a whole number from {low} to {high}"

    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise RefusedError(f"must be {says}")
        if not low <= value <= high:
            raise RefusedError(f"must lie between {low} and {high}")
        return value

    return Kind(says, check)


def _check_truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise RefusedError("must be true or false")
    return value


def _check_level(value: object) -> str:
    if not isinstance(value, str) or value.lower() not in LOG_LEVELS:
        raise RefusedError(f"must be one of {', '.join(LOG_LEVELS)}")
    return value.lower()


def _check_gpu_check(value: object) -> str:
    if value not in GPU_CHECKS:
        raise RefusedError(f"must be one of {', '.join(GPU_CHECKS)}")
    return str(value)


def _check_path(value: object) -> Path:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise RefusedError("must be a path")
    return Path(os.path.abspath(value))


def _check_path_or_none(value: object) -> Path | None:
    return None if value == "" else _check_path(value)


def _check_standing(value: object) -> dict[str, int] | None:
    if value == "":
        return None
    table = value if isinstance(value, dict) else {"*": value}
    clock = integer(1, (1 << 16) - 1)
    try:
        return {str(which): clock.check(clock_mhz) for which, clock_mhz in table.items()}
    except RefusedError:
        raise RefusedError(f"must be {STANDING.says}") from None


def _check_group(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise RefusedError("must be the name of a group")
    return value


def _check_users(value: object) -> frozenset[int] | None:
    if value == "*":
        return None
    if not isinstance(value, list | tuple):
        raise RefusedError('must be "*" or a list of user names and uids')
    return frozenset(_uid(user) for user in value)


def _uid(user: object) -> int:
    if isinstance(user, int) and not isinstance(user, bool) and user >= 0:
        return user
    if not isinstance(user, str):
        raise RefusedError(f"must hold user names and uids, and {shown(user)} is neither")
    try:
        return pwd.getpwnam(user).pw_uid
    except (KeyError, ValueError):
        raise RefusedError(f"names a user this machine does not have: {shown(user)}") from None


def _check_groups(value: object) -> frozenset[int] | None:
    if value == "*":
        return None
    if not isinstance(value, list | tuple):
        raise RefusedError('must be "*" or a list of group names and gids')
    return frozenset(_gid(group) for group in value)


def _gid(group: object) -> int:
    if isinstance(group, int) and not isinstance(group, bool) and group >= 0:
        return group
    if not isinstance(group, str):
        raise RefusedError(f"must hold group names and gids, and {shown(group)} is neither")
    try:
        return grp.getgrnam(group).gr_gid
    except (KeyError, ValueError):
        raise RefusedError(f"names a group this machine does not have: {shown(group)}") from None


def _listed(text: str) -> object:
    """A variable's list: as TOML has it, or with commas alone."""
    if text == "*" or text.startswith("["):
        return literal(text)
    words = [word.strip() for word in text.split(",")]
    return [int(word) if word.isdecimal() else word for word in words if word]


TRUTH = Kind("true or false", _check_truth)
LEVEL = Kind(f"one of {', '.join(LOG_LEVELS)}", _check_level, parse=str)
GPU_CHECK = Kind(f"one of {', '.join(GPU_CHECKS)}", _check_gpu_check, parse=str)
STANDING = Kind(
    'a clock in MHz, or a table of clocks by UUID or model of GPUs, or "" for none', _check_standing
)
PATH_OR_NONE = Kind('a path, or "" for none', _check_path_or_none, parse=str)
PATH = Kind("a path", _check_path, parse=str)
GROUP = Kind("the name of a group", _check_group, parse=str)
USERS = Kind(
    '`"*"`, or a list of user names and uids',
    _check_users,
    parse=_listed,
    plain=lambda uids: "*" if uids is None else sorted(uids),
)
GROUPS = Kind(
    '`"*"`, or a list of group names and gids',
    _check_groups,
    parse=_listed,
    plain=lambda gids: "*" if gids is None else sorted(gids),
)
