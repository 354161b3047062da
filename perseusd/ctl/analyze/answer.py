"""The answer of `analyze --json`: the verdicts on a file's runs as one object."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from perseusd.core.stragglers import Straggler
from perseusd.ctl.analyze.analysis import Place, RunAnalysis
from perseusd.traces.trace import Run, Trace


def answer(trace: Trace, runs: Sequence[RunAnalysis]) -> dict[str, Any]:
    """The contract's fields over all runs, and the same of each run where there are several."""
    found = _verdict(runs)
    found["kind"] = trace.kind
    found["notes"] = list(trace.notes)
    if len(runs) > 1:
        found["runs"] = [{"name": own.run.name, **_verdict([own])} for own in runs]
    return found


def _verdict(runs: Sequence[RunAnalysis]) -> dict[str, Any]:
    actual_s, ideal_s = sum(r.actual_s for r in runs), sum(r.ideal_s for r in runs)
    return {
        "iterations": sum(len(r.numbers) for r in runs),
        "slowdown": _rounded(actual_s / ideal_s) if ideal_s > 0 else None,
        "stragglers": [_straggler(s, r.run, len(runs) > 1) for r in runs for s in r.stragglers],
        "critical_path_share": [
            {**_place(place, runs), "share": _rounded(share)} for place, share in shares(runs)
        ],
        "slack": [
            {**_place(place, [own]), "slack": _rounded(slack)}
            for own in (runs if len(runs) == 1 else ())  # each run's is its own
            for place, slack in own.slack.items()
        ],
        "left_out": left_out(runs),
    }


def shares(runs: Iterable[RunAnalysis]) -> list[tuple[Place, float]]:
    """Of the critical paths of all runs together, largest first."""
    seconds: dict[Place, float] = defaultdict(float)
    total = 0.0
    for own in runs:
        total += own.path_s
        for place, share in own.shares:
            seconds[place] += share * own.path_s
    return sorted(((p, s / total) for p, s in seconds.items()), key=lambda item: -item[1])


def left_out(runs: Iterable[RunAnalysis]) -> dict[str, int]:
    """How many iterations did not count, or not for the path, by the reason in words."""
    found: Counter[str] = Counter()
    for own in runs:
        found.update(own.run.left_out)
        found.update(own.not_followed)
    return dict(found)


def _straggler(straggler: Straggler, run: Run, several: bool) -> dict[str, Any]:
    named = {"run": run.name} if several else {}
    return named | {
        "replica": straggler.replica,
        "stage": straggler.stage,
        "rank": straggler.rank,
        "factor": _rounded(straggler.factor),
        "since_iteration": straggler.since_iteration,
        "until_iteration": straggler.until_iteration,
        "transient": straggler.transient,
        "cause": straggler.cause,
    }


def _place(place: Place, runs: Sequence[RunAnalysis]) -> Mapping[str, int | None]:
    replica, stage = place
    return {"replica": replica if runs[0].run.replicas_told else None, "stage": stage}


def _rounded(value: float) -> float:
    return round(value, 4)
