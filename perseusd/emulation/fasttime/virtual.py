"""Virtual time: what is to happen when, and the iteration that it is."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Any

NS = 1_000_000_000


class VirtualTime:
    """Calls what is due, in order of time and then of asking.

    iteration: the one that training is in, counted from 0; -1 before the first.
    """

    def __init__(self) -> None:
        self.iteration = -1
        self._due: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()

    def at(self, when_ns: int, call: Callable[..., None], *arguments: Any) -> None:
        """`call(when_ns, *arguments)` at that time."""
        heapq.heappush(self._due, (when_ns, next(self._order), call, arguments))

    def step(self) -> None:
        """Do what is due next."""
        now, _, call, arguments = heapq.heappop(self._due)
        call(now, *arguments)
