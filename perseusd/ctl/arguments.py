"""Options that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from perseusd.config import DEFAULT_RUNTIME_DIR, RUNTIME_DIR_VARIABLE

RUNTIME_DIR_HELP: Final = (
    f"where the daemon's sockets are (default: ${RUNTIME_DIR_VARIABLE}, else {DEFAULT_RUNTIME_DIR})"
)


def add_runtime_dir(command: argparse.ArgumentParser) -> None:
    """Allow --runtime-dir after the command too; not given there, the one before it stands."""
    command.add_argument(
        "--runtime-dir",
        type=Path,
        metavar="DIR",
        default=argparse.SUPPRESS,
        help=RUNTIME_DIR_HELP,
    )


def add_json(command: argparse._ActionsContainer) -> None:
    command.add_argument("--json", action="store_true", help="one JSON object instead of text")
