"""`perseusctl plan`: the planner offline, from a profile file. Start reading at command.py."""

from __future__ import annotations

import argparse

from perseusd.config import Config
from perseusd.ctl.plan.arguments import add_arguments, requested

__all__ = ["add_arguments", "main"]


def main(arguments: argparse.Namespace, config: Config) -> int:
    """Plan what was asked for. Needs no daemon."""
    request = requested(arguments)
    # Only this command needs numpy and the planner: the others start without them.
    from perseusd.ctl.plan.command import run

    return run(request)
