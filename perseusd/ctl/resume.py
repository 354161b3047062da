"""`perseusctl resume`: take up the driver after a pause, or let one job or GPU be slowed again."""

from __future__ import annotations

import argparse

from perseusd.config import Config
from perseusd.ctl.arguments import add_json
from perseusd.ctl.control import command
from perseusd.ctl.output import print_json, safe
from perseusd.ctl.pause import add_timeout, check_timeout, wait_for
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
        answer = command(config, {"command": "resume", "name": arguments.name})
        name = safe(answer.get("name"))
        if arguments.json:
            print_json({"name": name})
        else:
            print(f"{name}: its clock is perseusd's again, and full until there is a plan")
        return DONE
    command(config, {"command": "resume"})
    wait_for(config, "held", arguments.timeout)
    if arguments.json:
        print_json({"driver": "held"})
    else:
        print("resumed: the driver is held again, and jobs are planned")
    return DONE
