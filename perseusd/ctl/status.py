"""`perseusctl status`: what every GPU and every job is doing, and what it saves."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from perseusd.config import Config
from perseusd.ctl.arguments import add_json
from perseusd.ctl.connection import ask
from perseusd.ctl.output import UNKNOWN, number, percent_with_interval, print_json, safe
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
        raise ProtocolError(f"perseusd refused: {safe(status.get('error'))}")
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


def render(status: Status) -> RenderableType:
    """The whole status as text and two tables."""
    parts: list[RenderableType] = [_headline(status["daemon"])]
    parts.append(_gpu_table(status["gpus"]) if status["gpus"] else Text("No GPU is visible."))
    if status["jobs"]:
        parts.append(_job_table(status["jobs"]))
        parts.extend(_job_notes(job) for job in status["jobs"])
    else:
        parts.append(Text("No job has reported yet. `perseusctl doctor` says what may be missing."))
    return Group(*parts)


def _headline(daemon: Mapping[str, object]) -> Text:
    line = Text(f"perseusd {safe(daemon.get('version'))}", style="bold")
    line.append(f", up {duration(daemon.get('uptime_s'))}", style="not bold")
    if daemon.get("mode") == "observe":
        line.append(", observe-only: no clock is ever written", style="yellow not bold")
    elif daemon.get("clock_process") == "dead":
        line.append(", perseusd-clock is dead: no clock can be written", style="red not bold")
    if daemon.get("emulated"):
        line.append(", emulated GPUs", style="yellow not bold")
    return line


def duration(seconds: object) -> str:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return UNKNOWN
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _gpu_table(gpus: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("GPUs", "GPU", "name", "state", "holder")
    for heading in ("clock MHz", "asked MHz", "power W", "energy kJ"):
        table.add_column(heading, justify="right")
    table.add_column("clock reasons")
    shown = _short_uuids([safe(gpu.get("uuid")) for gpu in gpus])
    for uuid, gpu in zip(shown, gpus, strict=True):
        table.add_row(
            Text(uuid),
            Text(safe(gpu.get("name")) + (" (emulated)" if gpu.get("emulated") else "")),
            Text(safe(gpu.get("state"))),
            Text(safe(gpu.get("holder"))),
            number(gpu.get("clock_mhz")),
            "full" if gpu.get("requested_mhz") is None else number(gpu.get("requested_mhz")),
            number(gpu.get("power_w")),
            number(_kilo(gpu.get("energy_j")), ".1f"),
            Text(_listed(gpu.get("reasons"))),
        )
    return table


def _short_uuids(uuids: Sequence[str]) -> list[str]:
    """The beginning of each, or beginning and end where that tells them apart; all is in --json."""
    for shorten in (lambda uuid: uuid[:12], lambda uuid: f"{uuid[:7]}…{uuid[-4:]}"):
        short = [shorten(uuid) for uuid in uuids]
        if len(set(short)) == len(set(uuids)):
            return short
    return list(uuids)


def _job_table(jobs: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("Jobs", "job", "state", "ranks")
    for heading in ("iteration", "iteration s", "deadline s"):
        table.add_column(heading, justify="right")
    for heading in ("saving", "slowdown"):
        table.add_column(heading)
    table.add_column("saved kJ", justify="right")
    for job in jobs:
        table.add_row(
            Text(safe(job.get("id"))),
            Text(safe(job.get("state"))),
            f"{number(job.get('ranks'))} of {number(job.get('expected_ranks'))}",
            number(job.get("iteration")),
            number(job.get("iteration_time_s"), ".3f"),
            number(job.get("deadline_s"), ".3f"),
            _measured(job, "saving"),
            _measured(job, "slowdown"),
            number(_kilo(job.get("energy_saved_j")), ".1f"),
        )
    return table


def _job_notes(job: Mapping[str, Any]) -> Text:
    """What does not fit in a row: why a job is not slowed, and who is slow."""
    lines = []
    if job.get("why"):
        lines.append(f"{safe(job.get('id'))}: {safe(job['why'])}")
    if job.get("stragglers"):
        lines.append(f"{safe(job.get('id'))}: stragglers: {_listed(job['stragglers'])}")
    return Text("\n".join(lines), end="\n" if lines else "")


def _measured(job: Mapping[str, Any], name: str) -> str:
    return percent_with_interval(job.get(name), job.get(f"{name}_low"), job.get(f"{name}_high"))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column)
    return table


def _kilo(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return value / 1000


def _listed(values: object) -> str:
    if not isinstance(values, list):
        return "" if values is None else safe(values)
    return ", ".join(_described(value) for value in values)


def _described(value: object) -> str:
    """One straggler or reason: plain text, or an object's keys and values."""
    if not isinstance(value, Mapping):
        return safe(value)
    known = {key: item for key, item in value.items() if item is not None}
    return " ".join(f"{safe(key)} {safe(item)}" for key, item in known.items())
