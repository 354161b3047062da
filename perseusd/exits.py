"""How every command ends: its exit codes, which error ends in which, and a wrong command line."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Final, NoReturn

from perseusd.config_sources import nearest
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
    """A command line that keeps the contract of --json also where it is wrong: one JSON object.

    Options are written out: what is short for one today is short for two when there is another.
    """

    _words: Sequence[str] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Raises SystemExit for unknown ones too: here, where the command's own are known."""
        self._words = sys.argv[1:] if args is None else list(args)
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        message += "".join(map(self._meant, self._unknown_options()))
        if "--json" in self._words:
            answer = {"schema_version": 1, "error": message, "exit_code": USAGE}
            sys.stdout.write(json.dumps(answer) + "\n")
        super().error(message)

    def _unknown_options(self) -> Iterator[str]:
        """Of this parser's own words: those after a command, or what is to be one, are its."""
        known, before = self._option_string_actions, ""
        for word in self._words:
            command = not word.startswith("-") and before not in known
            if word == "--" or (command and self._subparsers is not None):
                return
            name = word.partition("=")[0]
            if name.startswith("--") and name not in known:
                yield name
            before = word

    def _meant(self, name: str) -> str:
        """The end of a sentence about an option that is none."""
        known = [option for option in self._option_string_actions if option.startswith("--")]
        begun = [option for option in known if option.startswith(name)]
        asked = f"; did you mean {' or '.join(begun)}?" if begun else nearest(name, known)
        return f"; {name} is no option{asked}"
