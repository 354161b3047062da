"""The hooks' one way to the log: a user's handlers and filters may raise, and a hook does not."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

logger = logging.getLogger("perseus_hooks")

MOST_SAID = 32  # different things of one `Once`


def warn(message: str, *details: Any) -> None:
    """Log a warning. Never raises."""
    with contextlib.suppress(Exception):
        logger.warning(message, *details)


def inform(message: str, *details: Any) -> None:
    """Log what is no fault. Never raises."""
    with contextlib.suppress(Exception):
        logger.info(message, *details)


class Once:
    """Warnings of which each is logged once, though what they are of may happen a million times."""

    def __init__(self) -> None:
        self._said: set[Any] = set()

    def warn(self, about: Any, message: str, *details: Any) -> None:
        """about: what makes it the same warning. Never raises."""
        if about not in self._said and len(self._said) < MOST_SAID:
            self._said.add(about)
            warn(message, *details)
