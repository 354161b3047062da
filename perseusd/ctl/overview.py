"""A Status object as text for people: the daemon, its jobs, its GPUs, in 80 columns or more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from perseusd.ctl.job_overview import job_block
from perseusd.ctl.output import counted, number, safe
from perseusd.ctl.telling import blind, duration, missing_gpus, no_job, own_alone, pause, released

Gpu = Mapping[str, Any]

MOST_ROWS = 16
"""GPUs that have a row of their own; of more, those of a job are summed up in one."""

_FOLLOWS = {"above": "above what was asked", "below": "below what was asked"}


def render(status: Mapping[str, Any]) -> RenderableType:
    """The whole status: headline, a block for every job, and a table of the GPUs."""
    daemon = status["daemon"]
    parts: list[RenderableType] = [_headline(daemon)]
    told = (*blind(daemon), *missing_gpus(daemon), *released(daemon))
    parts += [Text(words, style="yellow") for words in told]
    parts.append(Text())
    for job in status["jobs"]:
        parts += [
            job_block(
                job,
                observing=daemon.get("mode") == "observe",
                emulated=bool(daemon.get("emulated")),
            ),
            Text(),
        ]
    if not status["jobs"]:
        ended = status.get("ended")
        hint = "" if ended else " `perseusctl doctor` says what may be missing."
        parts += [Text(f"{no_job(ended)}{hint}"), Text()]
    if (restricted := own_alone(daemon)) is not None:
        parts += [Text(restricted), Text()]
    parts += _gpus(status["gpus"]) if status["gpus"] else [Text("No GPU is visible.")]
    return Group(*parts)


def _headline(daemon: Mapping[str, object]) -> Text:
    line = Text(f"perseusd {safe(daemon.get('version'))}", style="bold")
    line.append(f", up {duration(daemon.get('uptime_s'))}", style="not bold")
    if daemon.get("mode") == "observe":
        line.append(", observe-only: no clock is ever written", style="yellow not bold")
    if (paused := pause(daemon)) is not None:
        line.append(f", {paused}", style="yellow not bold")
    elif daemon.get("mode") != "observe" and daemon.get("clock_process") == "dead":
        line.append(", perseusd-clock is dead: no clock can be written", style="red not bold")
    if daemon.get("emulated"):
        line.append(", emulated GPUs", style="yellow not bold")
    return line


def _gpus(gpus: Sequence[Gpu]) -> list[RenderableType]:
    models = {_model(gpu) for gpu in gpus}
    alike = len(models) == 1
    title = f"{counted(len(gpus), 'GPU')}" + (f": {models.pop()}" if alike else "")
    if len(gpus) <= MOST_ROWS:
        return [_table_of_each(title, gpus, with_model=not alike)]
    odd = [gpu for gpu in gpus if _is_odd(gpu)]
    tables: list[RenderableType] = [_table_of_jobs(title, gpus)]
    if odd:
        shown = odd[:MOST_ROWS]
        title = f"Of these, {len(odd)} not as they should be"
        tables.append(_table_of_each(title, shown, with_model=False))
    return tables


def _model(gpu: Gpu) -> str:
    return safe(gpu.get("name")) + (" (emulated)" if gpu.get("emulated") else "")


def _table_of_each(title: str, gpus: Sequence[Gpu], *, with_model: bool) -> Table:
    table = _table(title)
    table.add_column("GPU", no_wrap=True)
    if with_model:
        table.add_column("model")
    table.add_column("job")
    for heading in ("MHz", "asked", "W", "kJ"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("state, why slower")
    shown = short_uuids([safe(gpu.get("uuid")) for gpu in gpus])
    for uuid, gpu in zip(shown, gpus, strict=True):
        table.add_row(
            Text(uuid),
            *([Text(_model(gpu))] if with_model else []),
            Text(safe(gpu.get("holder"))),
            number(gpu.get("clock_mhz")),
            "full" if gpu.get("requested_mhz") is None else number(gpu.get("requested_mhz")),
            number(gpu.get("power_w")),
            number(_thousandth(gpu.get("energy_j")), ".1f"),
            Text(_remarks(gpu)),
        )
    return table


def _table_of_jobs(title: str, gpus: Sequence[Gpu]) -> Table:
    """One row for the GPUs of each job: of many, single rows are too many to read."""
    table = _table(title)
    table.add_column("job")
    for heading in ("GPUs", "MHz", "lowered", "kW", "MJ"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("state, why slower")
    holders = dict.fromkeys(gpu.get("holder") for gpu in gpus)
    for holder in holders:
        own = [gpu for gpu in gpus if gpu.get("holder") == holder]
        remarks = Counter(_remarks(gpu) for gpu in own)
        table.add_row(
            Text(safe(holder)),
            str(len(own)),
            _span([gpu.get("clock_mhz") for gpu in own]),
            str(sum(gpu.get("requested_mhz") is not None for gpu in own)),
            number(_thousandth(_sum(gpu.get("power_w") for gpu in own)), ".2f"),
            number(_thousandth(_thousandth(_sum(gpu.get("energy_j") for gpu in own))), ".2f"),
            Text("; ".join(f"{count} × {what}" for what, count in remarks.most_common())),
        )
    return table


def _is_odd(gpu: Gpu) -> bool:
    return gpu.get("state") != "ok" or gpu.get("follows_request") in _FOLLOWS


def _remarks(gpu: Gpu) -> str:
    """Its state, and everything that slows it."""
    remarks = [safe(gpu.get("state"))]
    if (follows := gpu.get("follows_request")) in _FOLLOWS:
        remarks.append(_FOLLOWS[follows])
    reasons = gpu.get("reasons")
    remarks += [safe(reason) for reason in (reasons if isinstance(reasons, list) else [])]
    return ", ".join(remarks)


def _span(values: Sequence[object]) -> str:
    known = [value for value in values if _is_number(value)]
    if not known:
        return number(None)
    low, high = min(known), max(known)  # type: ignore[type-var]
    return number(low) if low == high else f"{number(low)}–{number(high)}"


def _sum(values: Any) -> object:
    known = [value for value in values if _is_number(value)]
    return sum(known) if known else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _thousandth(value: object) -> object:
    return value / 1000 if isinstance(value, int | float) and _is_number(value) else value


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )


def short_uuids(uuids: Sequence[str]) -> list[str]:
    """The beginning of each, or beginning and end where that tells them apart; all is in --json."""
    for shorten in (lambda uuid: uuid[:12], lambda uuid: f"{uuid[:7]}…{uuid[-4:]}"):
        short = [shorten(uuid) for uuid in uuids]
        if len(set(short)) == len(set(uuids)):
            return short
    return list(uuids)
