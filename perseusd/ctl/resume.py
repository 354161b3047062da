"""`perseusctl resume`: take up the driver after a pause, or let one job or GPU be slowed again.

Where there is nothing to resume, what was wanted is so already: it says that, and exits with 0.
"""

from __future__ import annotations

import argparse

from perseusd.config import Config
from perseusd.ctl import telling
from perseusd.ctl.arguments import add_json
from perseusd.ctl.control import changed_by, command
from perseusd.ctl.output import print_json, safe
from perseusd.ctl.pause import add_timeout, check_timeout, wait_for
from perseusd.ctl.status import fetch
from perseusd.exits import DONE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name",
        nargs="?",
        metavar="JOB|GPU",
        help="what was released, or a GPU whose clock another tool has set; without it: the pause",
    )
    add_timeout(parser)
    add_json(parser)


def main(arguments: argparse.Namespace, config: Config) -> int:
    check_timeout(arguments.timeout)
    if arguments.name is not None:
        _resume_one(arguments, config)
    else:
        _end_pause(arguments, config)
    return DONE


def _resume_one(arguments: argparse.Namespace, config: Config) -> None:
    answer = command(config, {"command": "resume", "name": arguments.name})
    name, changed = safe(answer.get("name")), changed_by(answer)
    paused = telling.pause(answer)
    if arguments.json:
        print_json({"name": name, "changed": changed})
    elif not changed:
        other = ", and no other tool's clock is known there" if _is_gpu(name, config) else ""
        print(f"nothing to resume: {name} was not released{other}")
    elif paused:
        print(f"{name}: released no longer")
    else:
        print(f"{name}: its clock is perseusd's again, and full until there is a plan")
    if paused and not arguments.json:
        print(f"but perseusd is {paused}")


def _is_gpu(name: str, config: Config) -> bool:
    """Of a job it is not said: another tool's clock is on a GPU, and resumed by its name."""
    return any(gpu["uuid"] == name for gpu in fetch(config)["gpus"])


def _end_pause(arguments: argparse.Namespace, config: Config) -> None:
    answer = command(config, {"command": "resume"})
    idle = answer.get("driver") == "held" and not changed_by(answer)
    wait_for(config, "held", arguments.timeout)
    if arguments.json:
        print_json({"driver": "held", "changed": changed_by(answer)})
    elif not idle:
        print("resumed: the driver is held again, and jobs are planned")
    else:
        print("nothing to resume: perseusd was not paused")
        for words in telling.released(fetch(config)["daemon"]):
            print(words)
