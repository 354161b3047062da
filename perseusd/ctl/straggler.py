"""`perseusctl straggler`: tell the daemon that another replica of a job is slow, and when it ends.

A replica on other nodes is not seen by this node's daemon; whoever knows of it (a scheduler, a
monitoring rule, the trainer) announces it here, and the job's deadline follows.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping

from perseusd.config import Config
from perseusd.ctl.arguments import add_json, add_runtime_dir
from perseusd.ctl.connection import ask
from perseusd.ctl.output import print_json, safe
from perseusd.errors import NotPermittedError, PerseusError, ProtocolError, UsageError
from perseusd.exits import DONE

_REFUSALS: dict[str, type[PerseusError]] = {
    "not_permitted": NotPermittedError,
    "unknown_job": UsageError,
    "bad_request": UsageError,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="announce|end")
    announce = actions.add_parser("announce", help="another replica of this job is slow")
    announce.add_argument(
        "--factor",
        required=True,
        type=float,
        metavar="F",
        help="its iteration time over the normal one, such as 1.2",
    )
    end = actions.add_parser("end", help="it is no longer slow")
    for action in (announce, end):
        action.add_argument(
            "--job", required=True, metavar="ID", help="as `perseusctl status` shows"
        )
        add_json(action)
        add_runtime_dir(action)


def main(arguments: argparse.Namespace, config: Config) -> int:
    request: dict[str, object] = {"command": f"straggler_{arguments.action}", "job": arguments.job}
    if arguments.action == "announce":
        request["factor"] = _factor(arguments.factor)
    answer = ask(config.control_socket, request)
    _raise_refusal(answer)
    if arguments.json:
        print_json(answer)
    else:
        print(f"{safe(arguments.job)}: {_said(arguments)}")
    return DONE


def _factor(factor: float) -> float:
    if not math.isfinite(factor) or factor < 1:
        raise UsageError(
            f"--factor {factor:g}: a straggler is slower than normal; give its iteration time over "
            "the normal one, 1 or more, such as 1.2"
        )
    return factor


def _raise_refusal(answer: Mapping[str, object]) -> None:
    if answer.get("ok") is True:
        return
    if answer.get("ok") is not False:
        raise ProtocolError(
            "perseusd's answer says neither yes nor no; is it of this version? "
            "Compare `perseusd --version`"
        )
    kind = _REFUSALS.get(str(answer.get("code")), PerseusError)
    raise kind(
        safe(answer.get("error") or answer.get("code") or "perseusd refused without a reason")
    )


def _said(arguments: argparse.Namespace) -> str:
    if arguments.action == "end":
        return "straggler ended; the deadline goes back to the job's own"
    return f"straggler announced at {arguments.factor:g} times the normal iteration time"
