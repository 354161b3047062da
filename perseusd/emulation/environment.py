"""The environment of the demo's own processes."""

from __future__ import annotations

import os


def own_environment() -> dict[str, str]:
    """This process's, without what tells a user's daemon and hooks where and whether to speak."""
    ours = ("PERSEUS_", "PERSEUSD_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}
