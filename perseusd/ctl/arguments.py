"""Options that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_runtime_dir(command: argparse.ArgumentParser) -> None:
    """Allow --runtime-dir after the command too; not given there, the one before it stands."""
    command.add_argument(
        "--runtime-dir", type=Path, default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )


def add_json(command: argparse._ActionsContainer) -> None:
    command.add_argument("--json", action="store_true", help="one JSON object instead of text")
