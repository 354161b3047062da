"""One job of a Status object as a block of lines: what it takes, saves, and waits for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from perseusd.ctl import telling
from perseusd.ctl.output import UNKNOWN, number, percent, percent_with_interval, safe

Job = Mapping[str, Any]
Line = tuple[str, str]
"""A label and what stands behind it."""

MOST_STAGES = 10
"""That are told one by one, side by side in 80 columns; of more, only the largest shares are."""

LARGEST = 5

MOST_STRAGGLERS = 6


def job_block(job: Job, *, observing: bool, emulated: bool) -> RenderableType:
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True, min_width=13)
    grid.add_column()
    for label, words in _lines(job, observing, emulated):
        grid.add_row(Text(f"  {label}"), Text(words))
    return Group(_title(job), grid)


def _title(job: Job) -> Text:
    line = Text(safe(job.get("id")), style="bold")
    ranks = f"{number(job.get('ranks'))} of {number(job.get('expected_ranks'))} ranks"
    line.append(
        f": {safe(job.get('state'))}, {ranks}, iteration {telling.iteration(job.get('iteration'))}",
        style="not bold",
    )
    return line


def _lines(job: Job, observing: bool, emulated: bool) -> Iterator[Line]:
    yield "iteration", _iteration(job)
    if job.get("why"):
        yield "why", safe(job["why"])
    where = ", on emulated GPUs" if emulated else ""
    yield from _predicted(job, where) if observing else _saving(job, where)
    if job.get("state") == "learn":
        yield from _learning(job.get("learning"))
    yield from _stages(job)
    found = job.get("stragglers")
    stragglers = found if isinstance(found, list) else []
    for straggler in stragglers[:MOST_STRAGGLERS]:
        yield "straggler", telling.straggler(straggler)
    if len(stragglers) > MOST_STRAGGLERS:
        yield "", f"and {len(stragglers) - MOST_STRAGGLERS} more: `perseusctl straggler list`"


def _iteration(job: Job) -> str:
    took = number(job.get("iteration_time_s"), ".3f", " s")
    aim = job.get("deadline_s")
    return took if aim is None else f"{took}, aims at {number(aim, '.3f', ' s')}"


def _saving(job: Job, where: str) -> Iterator[Line]:
    yield "saving", _measured(job, "saving") + where
    yield "slowdown", _measured(job, "slowdown")
    saved = number(_kilo(job.get("energy_saved_j")), ".1f", " kJ")
    low, high = (_kilo(job.get(f"energy_saved_j_{end}")) for end in ("low", "high"))
    if low is not None and high is not None:
        saved += f" ({number(low, '.1f')} to {number(high, '.1f')})"
    if isinstance(count := job.get("reference_iterations"), int) and count > 0:
        cost = job.get("reference_cost")
        share = "" if cost is None else f", at {percent_fine(cost)} of the saving"
        saved += f"; measured on {count} reference iterations{share}"
    yield "saved", saved


def percent_fine(value: object) -> str:
    return number(value, "z.2%").replace("%", " %")


def _predicted(job: Job, where: str) -> Iterator[Line]:
    forecast = job.get("predicted_saving")
    if isinstance(forecast, Mapping):
        share = percent_with_interval(
            forecast.get("saving"), forecast.get("saving_low"), forecast.get("saving_high")
        )
        source = safe(forecast.get("source"))
        yield (
            "if it acted",
            f"saving predicted {share}{where}: not measured, from a prior ({source})",
        )
    elif job.get("no_prediction"):
        yield "if it acted", f"no saving is predicted: {safe(job['no_prediction'])}"
    else:
        yield "if it acted", "no saving is predicted yet"


def _learning(learning: object) -> Iterator[Line]:
    if not isinstance(learning, Mapping):
        return
    words = f"{number(learning.get('iterations'))} iterations with trials"
    if learning.get("lowest_mhz") is not None:
        words += f", down to {number(learning['lowest_mhz'])} MHz"
    doubts = learning.get("uncertain")
    if isinstance(doubts, list) and doubts and isinstance(doubts[0], Mapping):
        worst = doubts[0]
        words += (
            f"; least known: {safe(worst.get('instruction'))} of stage {safe(worst.get('stage'))}, "
            f"time ± {percent(worst.get('time_error'))}, "
            f"energy ± {percent(worst.get('energy_error'))}"
        )
    yield "learning", words
    if learning.get("remembered") not in (None, "none"):
        yield "remembered", f"curves of an earlier run: {safe(learning['remembered'])}"


def _stages(job: Job) -> Iterator[Line]:
    path, slack = _by_stage(job.get("critical_path")), _by_stage(job.get("slack"))
    stages = sorted(path.keys() | slack.keys())
    if not stages:
        return
    if len(stages) > MOST_STAGES:
        yield "critical path", _largest(path)
        if slack:
            yield "slack", _least(slack)
        return
    yield "stage", _cells([str(stage) for stage in stages])
    yield "critical path", _cells([_share(path.get(stage, 0.0)) for stage in stages])
    if slack:
        yield "slack", _cells([_share(slack.get(stage)) for stage in stages])


def _by_stage(value: object) -> dict[int, float]:
    """Shares by stage; what is not of that form is left out."""
    found: dict[int, float] = {}
    for part in value if isinstance(value, list) else []:
        stage, share = (part.get(k) for k in ("stage", "share")) if _is_map(part) else (None, None)
        if isinstance(stage, int) and isinstance(share, int | float):
            found[stage] = share
    return found


def _is_map(value: object) -> bool:
    return isinstance(value, Mapping)


def _cells(words: Sequence[str]) -> str:
    return " ".join(f"{word:>5}" for word in words)


def _share(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:z.0%}".replace("%", " %")


def _largest(path: Mapping[int, float]) -> str:
    ordered = sorted(path.items(), key=lambda item: -item[1])
    words = ", ".join(f"stage {stage} {_share(share)}" for stage, share in ordered[:LARGEST])
    rest = sum(share for _, share in ordered[LARGEST:])
    return f"{words}, others {_share(rest)}" if len(ordered) > LARGEST else words


def _least(slack: Mapping[int, float]) -> str:
    stage = min(slack, key=lambda s: slack[s])
    most = max(slack, key=lambda s: slack[s])
    return (
        f"from {_share(slack[stage])} (stage {stage}) to {_share(slack[most])} (stage {most}) "
        "more time for the same iteration"
    )


def _measured(job: Job, name: str) -> str:
    return percent_with_interval(job.get(name), job.get(f"{name}_low"), job.get(f"{name}_high"))


def _kilo(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return value / 1000
