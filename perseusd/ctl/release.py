"""`perseusctl release`: one job or GPU at full clock, until it is resumed."""

from __future__ import annotations

import argparse

from perseusd.config import Config
from perseusd.ctl.arguments import add_json
from perseusd.ctl.control import command
from perseusd.ctl.output import print_json, safe
from perseusd.exits import DONE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", metavar="JOB|GPU", help="a job's id; a GPU's index, UUID or its beginning"
    )
    add_json(parser)


def main(arguments: argparse.Namespace, config: Config) -> int:
    answer = command(config, {"command": "release", "name": arguments.name})
    name = safe(answer.get("name"))
    if arguments.json:
        print_json({"name": name})
    else:
        print(f"{name}: released; it stays at full clock until `perseusctl resume {name}`")
    return DONE
