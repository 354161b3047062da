"""`perseusctl analyze`: a recorded run through the daemon's own detector."""

from __future__ import annotations

import argparse
from pathlib import Path

from perseusd.config import Config
from perseusd.ctl.arguments import add_json

__all__ = ["add_arguments", "main"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "trace",
        type=Path,
        metavar="TRACE",
        help="a recording of `perseusctl record`, or a table (Parquet or CSV) of a run, recognised "
        "by its columns; docs/recordings.md names them",
    )
    add_json(parser)


def main(arguments: argparse.Namespace, config: Config) -> int:
    """Read the file and show the verdict. Needs no daemon."""
    # Only this command needs numpy and the detector: the others start without them.
    from perseusd.ctl.analyze.command import run

    return run(arguments.trace, as_json=arguments.json)
