"""`perseusctl verify`: whether every GPU's clock is what perseusd has written."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from perseusd.config import Config
from perseusd.ctl.arguments import add_json
from perseusd.ctl.output import number, print_json, safe
from perseusd.ctl.status import fetch
from perseusd.exits import DONE, FAILED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def main(arguments: argparse.Namespace, config: Config) -> int:
    status = fetch(config)
    gpus = [_judged(gpu) for gpu in status["gpus"]]
    troubles = [*_troubles(status["daemon"])]
    agrees = not troubles and all(gpu["agrees"] is not False for gpu in gpus)
    if arguments.json:
        print_json({"agrees": agrees, "troubles": troubles, "gpus": gpus})
    else:
        for trouble in troubles:
            print(f"differs: {trouble}")
        for gpu in gpus:
            print(_line(gpu))
    return DONE if agrees else FAILED


def _judged(gpu: Mapping[str, Any]) -> dict[str, Any]:
    told = ("uuid", "state", "requested_mhz", "standing_mhz", "clock_mhz", "reasons", "agrees")
    return {key: gpu.get(key) for key in told} | {"why": gpu.get("withheld") or gpu.get("error")}


def _troubles(daemon: Mapping[str, Any]) -> Iterator[str]:
    paused = daemon.get("driver", "held") != "held"
    acts = daemon.get("mode") != "observe"
    if acts and not paused and daemon.get("clock_process") != "alive":
        yield "perseusd-clock is not there, so that nothing is known of what is written"
    missing = daemon.get("missing_gpus")
    for gpu in missing if isinstance(missing, list) and not paused else []:
        yield f"GPU {safe(gpu.get('index'))} is missing: {safe(gpu.get('why'))}"


def _line(gpu: Mapping[str, Any]) -> str:
    full = number(gpu["standing_mhz"], unit=" MHz") if gpu["standing_mhz"] else "full clock"
    asked = full if gpu["requested_mhz"] is None else number(gpu["requested_mhz"], unit=" MHz")
    word = {True: "agrees", False: "differs"}.get(gpu["agrees"], "not told, as it does not compute")
    read = number(gpu["clock_mhz"], unit=" MHz")
    why = f": {safe(gpu['why'])}" if gpu["why"] else ""
    return f"{safe(gpu['uuid'])}  {word}: written {asked}, last read {read}{why}"
