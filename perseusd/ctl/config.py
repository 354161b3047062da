"""`perseusctl config`: whether a configuration is sound, and which values are in force.

`check` reads files alone, and tells every problem. `show` asks the running daemon, which also has
flags and an environment of its own; where none runs, or a file is named, it reads the files.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from perseusd.config import DEFAULT_FILE, Config, Sources, described, read_config, told
from perseusd.config_sources import Origin, drop_ins
from perseusd.ctl.arguments import add_json, add_runtime_dir
from perseusd.ctl.connection import ask
from perseusd.ctl.control import refusal
from perseusd.ctl.output import counted, print_json, safe
from perseusd.ctl.status import PIPED_WIDTH
from perseusd.errors import ConfigurationError, DaemonUnreachableError, ProtocolError
from perseusd.exits import CONFIGURATION, DONE

Options = Sequence[Mapping[str, Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="check|show")
    check = actions.add_parser("check", help="every problem of a file and of conf.d beside it")
    show = actions.add_parser("show", help="the values in force, and where each comes from")
    check.add_argument(
        "file",
        nargs="?",
        type=Path,
        default=DEFAULT_FILE,
        metavar="FILE",
        help=f"default: {DEFAULT_FILE}",
    )
    show.add_argument(
        "file",
        nargs="?",
        type=Path,
        metavar="FILE",
        help="as this file has it (default: as the running daemon has it; where none runs, as "
        f"{DEFAULT_FILE} has it)",
    )
    for action in (check, show):
        add_json(action)
        add_runtime_dir(action)


def main(arguments: argparse.Namespace, config: Config) -> int:
    if arguments.action == "check":
        return _check(arguments.file, as_json=arguments.json)
    return _show(arguments.file, config, as_json=arguments.json)


# --- check ----------------------------------------------------------------------------------------


def _check(file: Path, *, as_json: bool) -> int:
    problems = read_config(Sources(file)).problems
    files = _read(file)
    if as_json:
        print_json(
            {
                "ok": not problems,
                "files": [str(file) for file in files],
                "problems": [problem.as_json() for problem in problems],
            }
        )
    elif problems:
        for problem in problems:
            print(safe(problem))
        print(f"{counted(len(problems), 'problem')} in {counted(len(files), 'file')}.")
        if file == DEFAULT_FILE and not file.exists():
            print("Of a daemon that was started with --config, give the same: config check FILE")
    else:
        print(f"{', '.join(safe(file) for file in files)}: nothing is wrong.")
    return CONFIGURATION if problems else DONE


def _read(file: Path) -> list[Path]:
    try:
        return [file, *drop_ins(file)]
    except OSError:  # one of the problems
        return [file]


# --- show -----------------------------------------------------------------------------------------


def _show(file: Path | None, config: Config, *, as_json: bool) -> int:
    found = _of_files(file) if file is not None else _of_daemon(config)
    if found is None:
        found = _of_files(DEFAULT_FILE if DEFAULT_FILE.exists() else None)
    if as_json:
        print_json(found)
        return DONE
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=PIPED_WIDTH)
    console.print(Text(_heading(found)))
    console.print(_table(found["options"]))
    for wrong in found["problems"]:
        console.print(Text(f"refused at the last reload: {safe(wrong)}"), style="red")
    for waiting in found["waiting"]:
        console.print(Text(f"waits for a restart: {safe(waiting)}"), style="yellow")
    return DONE


def _of_daemon(config: Config) -> dict[str, Any] | None:
    """What the running daemon says; None where none runs."""
    try:
        answer = ask(config.status_socket, {"command": "config"})
    except DaemonUnreachableError:
        return None
    if answer.get("ok") is False:
        raise refusal(answer)
    options, lists = answer.get("options"), {k: answer.get(k) for k in ("waiting", "problems")}
    if not _are_options(options) or not all(isinstance(found, list) for found in lists.values()):
        raise ProtocolError(
            f"{config.status_socket}: the answer lacks options, waiting or problems; is this "
            "socket perseusd's, and of this version? Compare `perseusd --version`"
        )
    source = {"source": "daemon", "socket": str(config.status_socket), "file": answer.get("file")}
    return {**source, "options": options, **lists}


def _are_options(options: object) -> bool:
    return isinstance(options, list) and all(
        isinstance(option, dict)
        and {"section", "key", "value"} <= option.keys()
        and isinstance(option.get("origin"), dict)
        for option in options
    )


def _of_files(file: Path | None) -> dict[str, Any]:
    reading = read_config(Sources(file))
    if reading.config is None:
        raise ConfigurationError(told(reading.problems))
    options = described(reading.config, reading.origins)
    named = None if file is None else str(file)
    return {"source": "files", "file": named, "options": options, "waiting": [], "problems": []}


def _heading(told: Mapping[str, Any]) -> str:
    file = f"{safe(told['file'])} and conf.d beside it" if told["file"] else "no file"
    if told["source"] == "daemon":
        return f"In force in the daemon at {safe(told['socket'])}, which reads {file}:"
    if not told["file"]:
        return f"No daemon answers, and {DEFAULT_FILE} is not there; these are the defaults:"
    return f"No running daemon was asked; this is what {file} would make of it:"


def _table(options: Options) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for heading in ("key", "value", "from"):
        table.add_column(heading, overflow="fold")
    for option in options:
        section, origin = option["section"], option["origin"]
        key = f"[{section}] {option['key']}" if section else f"--{option['key']}"
        kind, name = safe(origin.get("kind")), safe(origin.get("name"))
        value = option["value"]
        table.add_row(
            Text(safe(key)),
            Text("unset" if value is None else safe(_text(value))),
            Text(str(Origin(kind, name)), style="dim" if kind == "default" else ""),
        )
    return table


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
