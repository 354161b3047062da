"""Two calls that tell perseusd where a training stage starts and ends.

They never block, never raise after `configure`, and do nothing where no daemon runs.
"""

from __future__ import annotations

from perseus_hooks.calls import close, configure, stage, stage_end, stage_start
from perseus_hooks.client import Client

__version__ = "0.1.0"

__all__ = ["Client", "close", "configure", "stage", "stage_end", "stage_start"]
