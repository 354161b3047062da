"""The verdict as people read it: what happened, where, since when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from perseusd.core.stragglers import Straggler
from perseusd.ctl.analyze.analysis import Place, RunAnalysis
from perseusd.ctl.analyze.answer import left_out, shares
from perseusd.ctl.output import UNKNOWN, counted, number, percent, safe
from perseusd.traces.trace import Trace

MOST_PLACES = 16
"""Rows of the table of places; the others are added up in one."""

LEAST_SHARE = 0.001
"""Of the critical path; below, a place is counted among the others."""

_SLACK = "slack: how much more a stage could compute in an iteration of the same length"

_CAUSES: Mapping[str | None, str] = {
    "compute": "computes slowly",
    "communication": "slow communication",
    "thermal": "hot: its clock is held down",
    "power_cap": "at its power cap",
    "power_brake": "power brake of the node",
    "hardware_slowdown": "the hardware slows it down",
    "replica": "the whole replica",
    "iteration": "the whole iteration",
    "announced": "announced",
}


def render(trace: Trace, runs: Sequence[RunAnalysis]) -> RenderableType:
    """A headline, stragglers, and where the time went."""
    parts: list[RenderableType] = [_headline(trace, runs)]
    found = [(own, straggler) for own in runs for straggler in own.stragglers]
    if found:
        parts.append(_straggler_table(found, named=len(runs) > 1))
    if any(own.shares for own in runs):
        parts += [_place_table(runs), Text(_SLACK)]
    parts += [Text(line, style="yellow") for line in _notes(trace, runs)]
    return Group(*parts)


def _headline(trace: Trace, runs: Sequence[RunAnalysis]) -> Text:
    iterations = sum(len(own.numbers) for own in runs)
    line = Text(safe(trace.path.name), style="bold")
    of_runs = f" in {counted(len(runs), 'run')}" if len(runs) > 1 else ""
    line.append(f": {safe(trace.kind)}, {counted(iterations, 'iteration')}{of_runs}", "not bold")
    line.append(f"\n{_slowdown(runs)} {_who(runs)}", style="not bold")
    return line


def _slowdown(runs: Sequence[RunAnalysis]) -> str:
    actual_s, ideal_s = sum(r.actual_s for r in runs), sum(r.ideal_s for r in runs)
    if not ideal_s:
        return "Nothing could be timed."
    what = "computation" if any(own.shares for own in runs) else "iteration"
    iterations = sum(len(own.numbers) for own in runs)
    return (
        f"An iteration took {actual_s / iterations:.3f} s on average, {actual_s / ideal_s:.3f} "
        f"times what it takes with every {what} at its median."
    )


def _who(runs: Sequence[RunAnalysis]) -> str:
    found = [straggler for own in runs for straggler in own.stragglers]
    lasting = sum(not straggler.transient for straggler in found)
    if not found:
        judged = any(own.actual_s for own in runs)
        return "No straggler." if judged else "Whether anybody was slow cannot be told."
    if not lasting:
        return f"No straggler that lasted; {counted(len(found), 'transient one')}."
    passing = len(found) - lasting
    also = f" and {counted(passing, 'transient one')}" if passing else ""
    return f"{counted(lasting, 'straggler')}{also}."


def _straggler_table(found: Sequence[tuple[RunAnalysis, Straggler]], named: bool) -> Table:
    table = _table("Stragglers", *(["run"] if named else []), "who")
    for heading in ("times as long", "since iteration", "until"):
        table.add_column(heading, justify="right")
    table.add_column("why")
    for own, straggler in found:
        until = straggler.until_iteration
        table.add_row(
            *([Text(safe(own.run.name))] if named else []),
            _named(straggler),
            f"{straggler.factor:.2f}",
            str(straggler.since_iteration),
            "lasts" if until is None else str(until),
            _why(straggler),
        )
    return table


def _named(straggler: Straggler) -> str:
    named = {
        "replica": straggler.replica,
        "stage": straggler.stage,
        "rank": straggler.rank,
    }
    return ", ".join(f"{k} {v}" for k, v in named.items() if v is not None) or "the job"


def _why(straggler: Straggler) -> str:
    why = _CAUSES.get(straggler.cause, safe(straggler.cause))
    return f"{why} (transient)" if straggler.transient else why


def _place_table(runs: Sequence[RunAnalysis]) -> Table:
    table = _table("Critical path", "where")
    table.add_column("share", justify="right")
    table.add_column("slack", justify="right")
    listed = shares(runs)
    told = any(own.run.replicas_told for own in runs)
    slack = _mean_slack(runs)
    shown = [(place, share) for place, share in listed if share >= LEAST_SHARE][:MOST_PLACES]
    for place, share in shown:
        table.add_row(_place(place, told), percent(share), percent(slack.get(place)))
    if (rest := sum(share for _, share in listed) - sum(share for _, share in shown)) > 1e-9:
        table.add_row("others", percent(rest), UNKNOWN)
    return table


def _mean_slack(runs: Sequence[RunAnalysis]) -> dict[Place, float]:
    return {
        place: sum(own.slack.get(place, 0.0) for own in runs) / len(runs)
        for own in runs
        for place in own.slack
    }


def _place(place: Place, told: bool) -> str:
    replica, stage = place
    return f"replica {replica}, stage {stage}" if told else f"stage {stage}"


def _notes(trace: Trace, runs: Sequence[RunAnalysis]) -> Iterator[str]:
    for reason, count in left_out(runs).items():
        yield f"left out: {number(count)} of the iterations: {safe(reason)}"
    yield from map(safe, trace.notes)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column)
    return table
