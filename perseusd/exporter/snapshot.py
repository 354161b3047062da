"""What the daemon said when it was asked last, and what asking it came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Snapshot:
    """One answer, or why there is none.

    status: the status object; None: the daemon did not answer as it should, and `error` says why.
    took_s: how long that took. age_s: since when it is known.
    asked: how often the daemon was asked so far, by what became of it.
    turned_away: connections that were closed because there were too many.
    """

    status: Mapping[str, Any] | None
    error: str | None
    took_s: float
    age_s: float
    asked: Mapping[str, int]
    turned_away: int = 0
