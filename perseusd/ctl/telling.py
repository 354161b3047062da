"""Parts of a Status object in words, for every command that shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

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


_DRIVER: Final[Mapping[str, str]] = {
    "letting_go": "being paused: the driver is let go of",
    "free": "paused: every clock is full; `perseusctl resume` ends it",
    "opening": "being resumed: the driver is opened",
}


def pause(daemon: Mapping[str, object]) -> str | None:
    """How far an operator's pause, or its end, is; None where the driver is held."""
    words = _DRIVER.get(safe(daemon.get("driver")))
    trouble = daemon.get("driver_trouble")
    return f"{words} ({safe(trouble)})" if words and trouble else words


def missing_gpus(daemon: Mapping[str, object]) -> list[str]:
    """Of each GPU that could not be opened, which and why."""
    missing = daemon.get("missing_gpus")
    listed = missing if isinstance(missing, list) else []
    return [missing_gpu(gpu) for gpu in listed if isinstance(gpu, Mapping)]


def missing_gpu(gpu: Mapping[str, object]) -> str:
    """One entry of `missing_gpus`."""
    return f"GPU {safe(gpu.get('index'))} could not be opened: {safe(gpu.get('why'))}"


def blind(daemon: Mapping[str, object]) -> list[str]:
    """Why no clock will ever be lowered, where the daemon cannot tell who uses GPUs."""
    why = daemon.get("gpu_use_unknown")
    return [safe(why)] if why else []


def released(daemon: Mapping[str, object]) -> list[str]:
    """Of each GPU or job that an operator has released, that it was."""
    found = daemon.get("released")
    return [safe(words) for words in (found.values() if isinstance(found, Mapping) else ())]


def own_alone(daemon: Mapping[str, object]) -> str | None:
    """That who asks is not told of other users' jobs; None where all are told."""
    if "configuration" not in daemon or daemon["configuration"] is not None:
        return None
    return "Other users' jobs are not shown to you ([access] status_readers)."


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
