"""How every command ends: its exit codes, which error ends in which, and a wrong command line."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any, Final, NoReturn

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


class Parser(argparse.ArgumentParser):
    """A command line that keeps the contract of --json also where it is wrong: one JSON object."""

    _words: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._words = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        if "--json" in self._words:
            answer = {"schema_version": 1, "error": message, "exit_code": USAGE}
            sys.stdout.write(json.dumps(answer) + "\n")
        super().error(message)
