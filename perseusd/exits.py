"""The exit codes of every command, and which error ends in which."""

from __future__ import annotations

from typing import Final

from perseusd.errors import (
    ConfigurationError,
    DaemonUnreachableError,
    NotPermittedError,
    PerseusError,
    UsageError,
)

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 69
NOT_PERMITTED: Final = 77
CONFIGURATION: Final = 78
INTERRUPTED: Final = 130  # as a shell reports a process that SIGINT ended

_CODES: Final[dict[type[PerseusError], int]] = {
    UsageError: USAGE,
    DaemonUnreachableError: UNREACHABLE,
    NotPermittedError: NOT_PERMITTED,
    ConfigurationError: CONFIGURATION,
}


def exit_code(error: PerseusError) -> int:
    """The exit code for an error: that of its nearest class in the table, else 1."""
    return next((_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), FAILED)
