"""`perseusctl pause`: every clock full and the driver let go of, so that a GPU can be reset."""

from __future__ import annotations

import argparse
import time

from perseusd.config import Config
from perseusd.ctl.arguments import add_json
from perseusd.ctl.control import command
from perseusd.ctl.output import print_json, safe
from perseusd.ctl.status import fetch
from perseusd.errors import PerseusError, UsageError
from perseusd.exits import DONE

PATIENCE_S = 15.0
POLL_S = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_timeout(parser)
    add_json(parser)


def main(arguments: argparse.Namespace, config: Config) -> int:
    check_timeout(arguments.timeout)
    command(config, {"command": "pause"})
    wait_for(config, "free", arguments.timeout)
    if arguments.json:
        print_json({"driver": "free"})
    else:
        print(
            "paused: every clock is full, neither perseusd nor perseusd-clock holds the driver, "
            "and jobs are watched; `perseusctl resume` ends it"
        )
    return DONE


def add_timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout",
        type=float,
        default=PATIENCE_S,
        metavar="S",
        help=f"how long to wait for its end (default {PATIENCE_S:g} s); it goes on all the same",
    )


def check_timeout(timeout_s: float) -> None:
    if not 0 < timeout_s <= 3600:
        raise UsageError(f"--timeout {timeout_s:g}: give more than 0 and up to 3600 seconds")


def wait_for(config: Config, driver: str, patience_s: float) -> None:
    """Until status shows the driver so; PerseusError with what keeps it after `patience_s`."""
    deadline_s = time.monotonic() + patience_s
    while (daemon := fetch(config)["daemon"]).get("driver") != driver:
        if time.monotonic() > deadline_s:
            now = safe(daemon.get("driver"))
            raise PerseusError(
                f"after {patience_s:g} s the driver is still {now}, not {driver}: "
                f"{safe(daemon.get('driver_trouble') or 'no reason is known')}; it goes on, see "
                "`perseusctl status`"
            )
        time.sleep(POLL_S)
