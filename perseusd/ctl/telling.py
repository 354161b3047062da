"""Parts of a Status object in words, for every command that shows them."""

from __future__ import annotations

from collections.abc import Mapping

from perseusd.ctl.output import UNKNOWN, number, safe


def duration(seconds: object) -> str:
    """As people say it, such as `1 h 4 min`."""
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


def straggler(found: object) -> str:
    """`replica 0 stage 2: 1.35 times its usual time, thermal, since iteration 120`."""
    if not isinstance(found, Mapping):
        return safe(found)
    times = f"{number(found.get('factor'), '.2f')} times its usual time"
    parts = [times, cause(found.get("cause"))]
    if found.get("transient"):
        parts.append("transient")
    return f"{place(found)}: {', '.join(parts)}, {_when(found)}"


def no_job(ended: object) -> str:
    """That none runs, and which one was the last."""
    last = ended[0] if isinstance(ended, list) and ended else None
    if not isinstance(last, Mapping):
        return "No job has reported yet."
    when = f"ended {duration(last.get('ended_s_ago'))} ago"
    reached = iteration(last.get("iteration"))
    told = "no iteration seen" if reached == UNKNOWN else f"iteration {reached}"
    return f"No job is running. Last: {safe(last.get('id'))}, {told}, {when}."


def iteration(value: object) -> str:
    """A number; before the first, which counts from 0, there is none."""
    return UNKNOWN if value == -1 else number(value)


def place(found: Mapping[str, object]) -> str:
    """Who it is, as far as that is known."""
    if found.get("cause") == "announced" and found.get("replica") is None:
        return "another replica"
    known = [f"{what} {safe(found[what])}" for what in ("replica", "stage") if _has(found, what)]
    if _has(found, "rank") and found.get("rank") != found.get("stage"):
        known.append(f"rank {safe(found['rank'])}")
    return " ".join(known) or "the whole job"


def cause(value: object) -> str:
    return "cause not known" if value is None else safe(value).replace("_", " ")


def _has(found: Mapping[str, object], what: str) -> bool:
    return found.get(what) is not None


def _when(found: Mapping[str, object]) -> str:
    since, until = found.get("since_iteration"), found.get("until_iteration")
    if isinstance(seconds := found.get("starts_in_s"), int | float):
        return f"to begin in {duration(seconds)}"
    if until is None:
        return f"since iteration {number(since)}"
    return f"iterations {number(since)} to {number(until)}"
