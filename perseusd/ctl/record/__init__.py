"""`perseusctl record`: what a daemon is told, kept in a file. Start reading at command.py."""

from __future__ import annotations

import argparse
from pathlib import Path

from perseusd.config import Config
from perseusd.ctl.arguments import add_json
from perseusd.errors import UsageError

__all__ = ["add_arguments", "main"]

LONGEST_S = 366 * 86_400.0
MOST_ITERATIONS = 1_000_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="where to (default: perseusd-DATE-TIME.recording here); must not exist yet",
    )
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="stop after so long (default: until Ctrl-C)"
    )
    parser.add_argument(
        "--iterations", type=int, metavar="N", help="stop after so many whole iterations of a job"
    )
    parser.add_argument(
        "--job", metavar="ID", help="this job's alone, as `perseusctl status` names it"
    )
    add_json(parser)


def main(arguments: argparse.Namespace, config: Config) -> int:
    """Record what was asked for."""
    seconds, iterations = arguments.seconds, arguments.iterations
    if seconds is not None and not 0 < seconds <= LONGEST_S:
        raise UsageError(f"--seconds {seconds:g}: give more than 0 and at most {LONGEST_S:g}")
    if iterations is not None and not 1 <= iterations <= MOST_ITERATIONS:
        raise UsageError(f"--iterations {iterations}: give 1 to {MOST_ITERATIONS}")
    # Only this command needs the core: the others start without it.
    from perseusd.ctl.record.command import Wanted, run

    wanted = Wanted(arguments.output, seconds, iterations, arguments.job)
    return run(config, wanted, as_json=arguments.json)
