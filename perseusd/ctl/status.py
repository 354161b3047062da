"""`perseusctl status`: what every GPU and every job is doing, and what it saves."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from perseusd.config import Config
from perseusd.ctl.arguments import add_json
from perseusd.ctl.connection import ask
from perseusd.ctl.control import refusal
from perseusd.ctl.output import print_json, safe
from perseusd.ctl.overview import render
from perseusd.errors import DaemonUnreachableError, ProtocolError, UsageError
from perseusd.exits import DONE

Status = dict[str, Any]

PIPED_WIDTH = 140
"""Columns where no terminal says how many: narrower ones would cut the tables short."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    form = parser.add_mutually_exclusive_group()
    add_json(form)
    form.add_argument("--watch", action="store_true", help="show it again and again until Ctrl-C")
    parser.add_argument(
        "--interval", type=float, default=1.0, metavar="S", help="seconds between two (default 1)"
    )


def main(arguments: argparse.Namespace, config: Config) -> int:
    if not 0.1 <= arguments.interval <= 3600:
        raise UsageError(f"--interval {arguments.interval:g}: give 0.1 to 3600 seconds")
    if arguments.json:
        print_json(fetch(config))
    elif arguments.watch:
        _watch(config, arguments.interval)
    else:
        _console().print(render(fetch(config)))
    return DONE


def fetch(config: Config) -> Status:
    """The daemon's Status object, its outer shape checked."""
    status = ask(config.status_socket, {"command": "status"})
    if status.get("ok") is False:
        raise refusal(status)
    if not (
        isinstance(status.get("daemon"), dict)
        and _is_list_of_objects(status.get("gpus"))
        and _is_list_of_objects(status.get("jobs"))
    ):
        raise ProtocolError(
            f"{config.status_socket}: the answer lacks daemon, gpus or jobs; is this socket "
            "perseusd's, and of this version? Compare `perseusd --version`"
        )
    return status


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPED_WIDTH)


def _watch(config: Config, interval_s: float) -> None:
    """Until interrupted; a daemon that goes away is waited for."""
    console = _console()
    if not console.is_terminal or console.is_dumb_terminal:  # nothing can be redrawn there
        for shown in _frames(config, interval_s):
            console.print(shown)  # and flushed
        return
    with Live(console=console, auto_refresh=False) as live:
        for shown in _frames(config, interval_s):
            live.update(shown, refresh=True)


def _frames(config: Config, interval_s: float) -> Iterator[RenderableType]:
    while True:
        try:
            yield render(fetch(config))
        except DaemonUnreachableError as error:
            yield Text(f"waiting: {safe(error)}", style="yellow")
        time.sleep(interval_s)
