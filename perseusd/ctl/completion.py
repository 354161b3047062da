"""`perseusctl completion`: a script with which a shell completes perseusctl's words.

It is made from the parser once, and asks nobody when it is used: no Python starts at a Tab.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from perseusd.config import Config
from perseusd.ctl.arguments import add_json
from perseusd.ctl.output import print_json
from perseusd.exits import DONE

SHELLS: Final = ("bash", "zsh", "fish")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "shell",
        choices=SHELLS,
        help="whose completion to print; docs/operating.md says where it goes",
    )
    add_json(parser)


def main(arguments: argparse.Namespace, config: Config) -> int:
    """Print the script. Needs no daemon."""
    # Not at the head of this file: the parser has this command in it.
    from perseusd.ctl.main import parser

    text = script(parser(), arguments.shell)
    if arguments.json:
        print_json({"shell": arguments.shell, "script": text})
    else:
        sys.stdout.write(text)
    return DONE


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """What the shell reads; paths are completed where an argument is one."""
    import shtab  # only this command needs it

    for action in _actions(parser):
        if action.type is Path:
            complete = shtab.DIRECTORY if action.metavar == "DIR" else shtab.FILE
            action.complete = complete  # type: ignore[attr-defined]
    text: str = shtab.complete(parser, shell)
    return text if text.endswith("\n") else text + "\n"


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
