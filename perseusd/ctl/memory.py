"""`perseusctl memory`: the learned curves that the daemon keeps on disk, listed or forgotten.

The files are the daemon's own, so it is asked: over the control socket, as for all that changes
something. Its disk may be slow; what it has found of it by now is asked for again until it is new.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from perseusd.config import Config
from perseusd.ctl.arguments import add_json, add_runtime_dir
from perseusd.ctl.control import command
from perseusd.ctl.output import counted, number, print_json, safe
from perseusd.ctl.status import PIPED_WIDTH
from perseusd.ctl.telling import duration
from perseusd.errors import PerseusError, ProtocolError, UsageError
from perseusd.exits import DONE

PATIENCE_S = 3.0
"""With the daemon's disk."""

POLL_S = 0.02
"""At first; every question has the daemon look again, so they become rarer."""

SHOWN_DIGITS = 12
"""Of a signature; so many, and fewer, are enough to name it."""

Curves = Sequence[Mapping[str, Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|forget")
    listing = actions.add_parser("list", help="what is kept, the last used first")
    forget = actions.add_parser("forget", help="the next such job learns anew")
    which = forget.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "signature", nargs="?", metavar="SIGNATURE", help="as listed; its beginning will do"
    )
    which.add_argument("--all", action="store_true", help="everything that is kept")
    for action in (listing, forget):
        add_json(action)
        add_runtime_dir(action)


def main(arguments: argparse.Namespace, config: Config) -> int:
    if arguments.action == "list":
        _list(arguments, config)
    else:
        _forget(arguments, config)
    return DONE


def _list(arguments: argparse.Namespace, config: Config) -> None:
    answer = _listed(config)
    shown = {k: answer.get(k) for k in ("remember", "directory", "troubles")}
    if arguments.json:
        print_json({**shown, "curves": answer["curves"]})
        return
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=PIPED_WIDTH)
    if not answer.get("remember"):
        console.print("Nothing is kept: [learning] remember = false", markup=False)
        return
    console.print(f"{safe(answer.get('directory'))}:", markup=False)
    for trouble in answer.get("troubles") or ():
        console.print(safe(trouble), style="yellow", markup=False)
    console.print(_table(answer["curves"]) if answer["curves"] else "No learned curves are kept.")


def _table(curves: Curves) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for heading in ("signature", "stages", "GPU", "schedule", "learned", "last used", "bytes"):
        table.add_column(heading, justify="right" if heading in ("stages", "bytes") else "left")
    for kept in curves:
        gpus = kept.get("gpus")
        named = ", ".join(safe(gpu) for gpu in gpus) if isinstance(gpus, list) else "–"
        table.add_row(
            Text(safe(kept["signature"])[:SHOWN_DIGITS]),
            number(kept.get("stages")),
            Text(f"damaged: {safe(kept['damaged'])}" if kept.get("damaged") else named),
            Text(safe(kept.get("schedule"))),
            Text(safe(kept.get("saved"))),
            f"{duration(kept.get('used_s_ago'))} ago",
            number(kept.get("size_bytes")),
        )
    return table


def _forget(arguments: argparse.Namespace, config: Config) -> None:
    kept = [str(curve["signature"]) for curve in _listed(config)["curves"]]
    signatures = kept if arguments.all else [_meant(arguments.signature, kept)]
    for signature in signatures:
        command(config, {"command": "memory_forget", "signature": signature})
    answer = _listed(config)
    left = {curve["signature"] for curve in answer["curves"]} & set(signatures)
    if left:
        troubles = "; ".join(safe(trouble) for trouble in answer.get("troubles") or ())
        raise PerseusError(f"still there: {', '.join(map(safe, sorted(left)))}: {troubles}")
    if arguments.json:
        print_json({"forgotten": signatures})
    else:
        print(f"forgotten: {counted(len(signatures), 'signature')}")


def _meant(asked: str, kept: Sequence[str]) -> str:
    named = [signature for signature in kept if asked and signature.startswith(asked.lower())]
    if len(named) != 1:
        how = "none begins" if not named else f"{len(named)} begin"
        raise UsageError(f"{safe(asked)}: {how} so; see `perseusctl memory list`")
    return named[0]


def _listed(config: Config) -> dict[str, Any]:
    """The list as of a look at the directory that began after this call did."""
    request = {"command": "memory_list"}
    first = answer = _checked(config, command(config, request))
    waited_s, pause_s = 0.0, POLL_S
    while answer["looks"] < first["look"]:
        if waited_s > PATIENCE_S:
            raise PerseusError(
                f"{safe(answer.get('directory'))}: the disk does not answer perseusd within "
                f"{PATIENCE_S:g} s; training is unaffected"
            )
        time.sleep(pause_s)
        waited_s, pause_s = waited_s + pause_s, 2 * pause_s
        answer = _checked(config, command(config, request))
    return answer


def _checked(config: Config, answer: dict[str, Any]) -> dict[str, Any]:
    curves = answer.get("curves")
    sound = isinstance(curves, list) and all(
        isinstance(curve, dict) and "signature" in curve for curve in curves
    )
    if not sound or not all(isinstance(answer.get(k), int) for k in ("look", "looks")):
        raise ProtocolError(
            f"{config.control_socket}: the answer lacks curves, look or looks; is this socket "
            "perseusd's, and of this version? Compare `perseusd --version`"
        )
    return answer
