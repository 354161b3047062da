"""`perseusctl straggler`: who is slow, and word of who will be.

Stragglers on this node are found by themselves. A replica on other nodes is not seen by this node's
daemon, and what has not begun yet (a power cap in half a minute) by none: whoever knows of it (a
scheduler, a monitoring rule, the trainer) announces it here, and the job's deadline follows.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping
from typing import Any

from perseusd.config import Config
from perseusd.ctl import telling
from perseusd.ctl.arguments import add_json, add_runtime_dir
from perseusd.ctl.control import changed_by, command
from perseusd.ctl.output import print_json, safe
from perseusd.ctl.status import Status, fetch
from perseusd.errors import UsageError
from perseusd.exits import DONE

LONGEST_NOTICE_S = 86_400.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|announce|end")
    listing = actions.add_parser("list", help="who is slow, and who was")
    announce = actions.add_parser(
        "announce", help="another replica of this job is slow, or will be"
    )
    announce.add_argument(
        "--factor",
        required=True,
        type=float,
        metavar="F",
        help="its iteration time over the normal one, such as 1.2",
    )
    announce.add_argument(
        "--in",
        dest="in_s",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="when it begins, up to a day from now (default: it has begun)",
    )
    end = actions.add_parser("end", help="it is no longer slow")
    for action in (announce, end):
        action.add_argument(
            "--job", required=True, metavar="ID", help="as `perseusctl status` shows"
        )
    listing.add_argument("--job", metavar="ID", help="of this job alone")
    for action in (listing, announce, end):
        add_json(action)
        add_runtime_dir(action)


def main(arguments: argparse.Namespace, config: Config) -> int:
    if arguments.action == "list":
        return _list(arguments, config)
    request: dict[str, object] = {"command": f"straggler_{arguments.action}", "job": arguments.job}
    if arguments.action == "announce":
        request["factor"] = _factor(arguments.factor)
        if in_s := _notice(arguments.in_s):
            request["in_s"] = in_s
    answer = command(config, request)
    if arguments.json:
        print_json(answer)
    else:
        print(f"{safe(arguments.job)}: {_said(arguments, changed=changed_by(answer))}")
    return DONE


def _factor(factor: float) -> float:
    if not math.isfinite(factor) or factor < 1:
        raise UsageError(
            f"--factor {factor:g}: a straggler is slower than normal; give its iteration time over "
            "the normal one, 1 or more, such as 1.2"
        )
    return factor


def _notice(in_s: float) -> float:
    if not 0 <= in_s <= LONGEST_NOTICE_S:
        raise UsageError(
            f"--in {in_s:g}: give in how many seconds it begins, from 0 to {LONGEST_NOTICE_S:g}"
        )
    return in_s


def _said(arguments: argparse.Namespace, *, changed: bool) -> str:
    if arguments.action == "end" and not changed:
        return "nothing to end: no straggler is announced (one that is seen ends by itself)"
    if arguments.action == "end":
        return "announced straggler ended; the deadline no longer follows it"
    begins = f", beginning in {telling.duration(arguments.in_s)}" if arguments.in_s else ""
    return f"straggler announced at {arguments.factor:g} times the normal iteration time{begins}"


# --- list -----------------------------------------------------------------------------------------


def _list(arguments: argparse.Namespace, config: Config) -> int:
    jobs = _asked_for(fetch(config), arguments.job)
    if arguments.json:
        print_json({"jobs": [_as_json(job) for job in jobs]})
        return DONE
    for job in jobs:
        print(f"{safe(job.get('id'))}:")
        for line in _lines(job):
            print(f"  {line}")
    if not jobs:
        print("no job is running")
    return DONE


def _asked_for(status: Status, asked: str | None) -> list[Mapping[str, Any]]:
    jobs: list[Mapping[str, Any]] = status["jobs"]
    if asked is None:
        return jobs
    named = [job for job in jobs if asked in (job.get("id"), safe(job.get("id")).split(":", 1)[-1])]
    if not named:
        running = ", ".join(safe(job.get("id")) for job in jobs) or "none"
        raise UsageError(f"--job {safe(asked)}: no such job here; running are {running}")
    return named


def _as_json(job: Mapping[str, Any]) -> dict[str, object]:
    lists = {key: _found(job, key) for key in ("stragglers", "straggler_history")}
    return {"id": job.get("id"), **lists, "straggler_to_come": job.get("straggler_to_come")}


def _lines(job: Mapping[str, Any]) -> Iterator[str]:
    current, past = _found(job, "stragglers"), _found(job, "straggler_history")
    if not current:
        yield "no straggler now"
    for straggler in current:
        yield f"now: {telling.straggler(straggler)}"
    coming = job.get("straggler_to_come")
    if isinstance(coming, Mapping):
        yield f"to come: {telling.straggler({'cause': 'announced', **coming})}"
    for straggler in reversed(past):
        yield f"over: {telling.straggler(straggler)}"


def _found(job: Mapping[str, Any], key: str) -> list[Any]:
    value = job.get(key)
    return value if isinstance(value, list) else []
